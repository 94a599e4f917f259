"""The devices that a script uses: cores of a CPU or accelerators, of one process or of several."""

import contextlib
import dataclasses
import hashlib
import os
import sys
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.command.report import CannotRun

HEARTBEAT = 20  # seconds without a sign of life of another process after which this one ends
PATIENCE = 120  # seconds to wait for all processes to be there

Devices = tuple[Any, ...]  # of one run


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """What scripts take that train."""

    devices: int | None = None
    """How many devices to use; by default all: of a CPU, a device a core."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions(DeviceOptions):
    """What scripts take that run in several processes. The environment's JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say the same."""

    coordinator: str | None = None
    """host:port of the first of several processes; --devices is then the number of each."""
    processes: int | None = None
    """How many processes there are, each started with the same options but for --process."""
    process: int | None = None
    """Which of them this is, from 0."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_environment(options: ProcessOptions) -> ProcessOptions:
    """The options, with the environment's where none are given."""

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdecimal():
            raise ValueError(f"{name} expected a number, got {text!r}")
        return None if text is None else int(text)

    given = {
        "coordinator": os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "processes": number("JAX_NUM_PROCESSES"),
        "process": number("JAX_PROCESS_ID"),
    }
    return dataclasses.replace(
        options, **{name: value for name, value in given.items() if getattr(options, name) is None}
    )


def check_devices(options: DeviceOptions) -> None:
    """A `ValueError` in one line for options that cannot be; without touching a device."""
    if options.devices is not None and options.devices < 1:
        raise ValueError(f"--devices expected a positive number, got {options.devices}")
    if not isinstance(options, ProcessOptions):
        return
    options = with_environment(options)
    given = [name for name in ("coordinator", "processes", "process") if getattr(options, name) is not None]
    if given and len(given) < 3:
        missing = next(name for name in ("coordinator", "processes", "process") if name not in given)
        raise ValueError(f"--{given[0]} expected --{missing} beside it; several processes need all three")
    if options.processes is None or options.process is None:
        return
    if options.processes < 1:
        raise ValueError(f"--processes expected a positive number, got {options.processes}")
    if not 0 <= options.process < options.processes:
        raise ValueError(f"--process expected 0 to {options.processes - 1}, got {options.process}")
    host, colon, port = (options.coordinator or "").rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ValueError(f"--coordinator expected host:port, got {options.coordinator}")


def start_devices(options: DeviceOptions) -> None:
    """Makes the devices, and meets the other processes; before anything asks JAX for a device.

    If the other processes do not come, this one ends with one line on stderr and exit code 2.

    Raises:
        CannotRun: if there are fewer devices than asked for.
    """
    with contextlib.suppress(RuntimeError):  # a test or a notebook has begun to compute already
        jax.config.update("jax_num_cpu_devices", cores() if options.devices is None else options.devices)
    if isinstance(options, ProcessOptions):
        _meet(with_environment(options))
    found = len(jax.local_devices())
    if options.devices is not None and options.devices > found:
        raise CannotRun(f"--devices expected at most {found} here, got {options.devices}")


def _meet(options: ProcessOptions) -> None:
    if options.processes is None or options.processes == 1:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    alarm = threading.Timer(PATIENCE, _give_up, [options])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process,
            initialization_timeout=2 * PATIENCE,  # after which JAX aborts, with a stack trace
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except RuntimeError as error:  # such as a port that is taken
        raise CannotRun(f"--coordinator {options.coordinator}: {str(error).splitlines()[0]}") from error
    finally:
        alarm.cancel()


def _give_up(options: ProcessOptions) -> None:
    """Ends this process from a thread of its own: the main one waits inside JAX."""
    print(
        f"--coordinator {options.coordinator}: {options.processes} processes did not meet within {PATIENCE} s; "
        "was each of them started, with the same --processes?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def check_alike(options: DeviceOptions) -> None:
    """A `CannotRun` if another process was started with other options."""
    if jax.process_count() == 1:
        return
    told = with_environment(options) if isinstance(options, ProcessOptions) else options
    alike = {**dataclasses.asdict(told), "process": None, "data_dir": None}  # data may lie elsewhere on each machine
    digest = np.frombuffer(hashlib.sha256(repr(alike).encode()).digest(), np.uint8)
    every = multihost_utils.process_allgather(digest)
    other = [k for k, own in enumerate(every) if (own != digest).any()]
    wait_for_all("options are compared")  # who is refused ends at once, and must not end before all have heard
    if other:
        raise CannotRun(f"process {other[0]} was started with other options than process {jax.process_index()}")


def devices_of(options: DeviceOptions) -> Devices:
    """The devices to run on, of all processes, those of a process next to each other."""
    every = (jax.local_devices(process_index=k) for k in range(jax.process_count()))
    return tuple(device for own in every for device in own[: options.devices])


def platform_of(devices: Devices) -> str:
    """The platform of a run's devices: "cpu", "gpu" or "tpu"; that of JAX's default device if the run has none."""
    return devices[0].platform if devices else jax.default_backend()


def as_the_first_says(values: np.ndarray) -> np.ndarray:
    """The numbers of the first process, so that all decide alike what follows from them."""
    if jax.process_count() == 1:
        return values
    own = np.ascontiguousarray(values)
    told = multihost_utils.broadcast_one_to_all(own.view(np.uint8))  # bytes: JAX would make float64 float32
    return np.asarray(told).view(own.dtype)


def wait_for_all(what: str) -> None:
    """Until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0
