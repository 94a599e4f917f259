"""The devices that a script uses: cores of a CPU or accelerators, in one process or in several."""

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

from experiments.command.messages import first_line, one_line, shown
from experiments.command.options import check_positive
from experiments.command.report import CannotRun

HEARTBEAT = 20  # seconds without a sign of life of another process after which this one ends
PATIENCE = 120  # seconds to wait for all processes to connect
MOST_DEVICES = 1024  # of a process: JAX starts threads for each

Devices = tuple[Any, ...]  # of one run


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """The options of scripts that train."""

    devices: int | None = None
    """How many devices to use; by default all. A CPU has one device for each core."""


@dataclasses.dataclass(frozen=True)
class ProcessOptions(DeviceOptions):
    """The options of scripts that run in several processes. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID in the environment are used where an option is not given."""

    coordinator: str | None = None
    """host:port of the first of several processes; each process then uses --devices devices."""
    processes: int | None = None
    """How many processes there are. Each is started with the same options except --process."""
    process: int | None = None
    """The number of this process, from 0."""


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_environment(options: ProcessOptions) -> ProcessOptions:
    """Returns the options, with those of the environment where none are given."""

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdecimal():
            raise ValueError(f"{name} expected a number, got {one_line(repr(text), 80)}")
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
    """Raises a `ValueError` in one line for invalid options, before any device is used."""
    if options.devices is not None:
        check_positive("--devices", options.devices)
        if options.devices > MOST_DEVICES:
            raise ValueError(f"--devices expected at most {MOST_DEVICES:,}, got {shown(options.devices)}")
    if not isinstance(options, ProcessOptions):
        return
    options = with_environment(options)
    given = [name for name in ("coordinator", "processes", "process") if getattr(options, name) is not None]
    if given and len(given) < 3:
        missing = next(name for name in ("coordinator", "processes", "process") if name not in given)
        raise ValueError(f"--{given[0]} expected --{missing} beside it; several processes need all three")
    if options.processes is None or options.process is None:
        return
    check_positive("--processes", options.processes)
    if not 0 <= options.process < options.processes:
        raise ValueError(f"--process expected 0 to {options.processes - 1}, got {shown(options.process)}")
    host, colon, port = (options.coordinator or "").rpartition(":")
    if not (host and colon and port.isdecimal() and len(port) < 6 and int(port) < 2**16):
        raise ValueError(f"--coordinator expected host:port, got {shown(options.coordinator)}")


def start_devices(options: DeviceOptions) -> None:
    """Sets up the devices and connects the processes. It must be called before JAX uses a device.

    If the other processes do not connect in time, this one ends with one line on stderr and exit code 2.

    Raises:
        CannotRun: if there are fewer devices than asked for.
    """
    with contextlib.suppress(RuntimeError):  # in a test or a notebook JAX may have been used already
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
    except RuntimeError as error:  # such as a port that is in use
        raise CannotRun(f"--coordinator {shown(options.coordinator)}: {first_line(error)}") from error
    finally:
        alarm.cancel()


def _give_up(options: ProcessOptions) -> None:
    """Ends this process from another thread, because the main thread waits inside JAX."""
    print(
        f"--coordinator {shown(options.coordinator)}: {options.processes} processes did not meet within {PATIENCE} s; "
        "was each of them started, with the same --processes?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def check_alike(options: DeviceOptions) -> None:
    """Raises `CannotRun` if another process was started with other options."""
    if jax.process_count() == 1:
        return
    given = with_environment(options) if isinstance(options, ProcessOptions) else options
    alike = {**dataclasses.asdict(given), "process": None, "data_dir": None}  # data may lie elsewhere on each machine
    digest = np.frombuffer(hashlib.sha256(repr(alike).encode()).digest(), np.uint8)
    every = multihost_utils.process_allgather(digest)
    other = [k for k, own in enumerate(every) if (own != digest).any()]
    wait_for_all("options are compared")  # no process may end before all have compared
    if other:
        raise CannotRun(f"process {other[0]} was started with other options than process {jax.process_index()}")


def devices_of(options: DeviceOptions) -> Devices:
    """The devices of all processes to run on; those of one process are consecutive."""
    every = (jax.local_devices(process_index=k) for k in range(jax.process_count()))
    return tuple(device for own in every for device in own[: options.devices])


def platform_of(devices: Devices) -> str:
    """The platform of a run's devices: "cpu", "gpu" or "tpu"; that of JAX's default device if the run has none."""
    return devices[0].platform if devices else jax.default_backend()


def as_the_first_says(values: np.ndarray) -> np.ndarray:
    """Returns the first process's values in every process, so that all take the same decisions."""
    if jax.process_count() == 1:
        return values
    own = np.ascontiguousarray(values)
    sent = multihost_utils.broadcast_one_to_all(own.view(np.uint8))  # as bytes: JAX would round float64 to float32
    return np.asarray(sent).view(own.dtype)


def wait_for_all(what: str) -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_first() -> bool:
    """Returns whether this is the process that prints and writes."""
    return jax.process_index() == 0
