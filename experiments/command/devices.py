"""All cores of a CPU, each as a device of its own that runs its own loop over time."""

import os
from typing import Any

import jax


def use_all_cores() -> None:
    """One CPU device a core. It must come before anything asks JAX for its devices; after that it changes nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # a test or a notebook has begun to compute already
        return


def sharing(batch_size: int) -> list[Any]:
    """As many devices as divide a batch."""
    devices = jax.devices()
    return devices[: max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)]
