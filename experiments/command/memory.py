"""The memory that there is, and the refusal of what cannot fit it, before any of it is taken."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

LIMITS = (  # of a container, in version 2 and 1 of Linux's control groups
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def machine_bytes() -> int:
    """The memory of this machine, or of the container in which this process runs if that has less."""
    found = [psutil.virtual_memory().total]
    for path in LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():  # not "max"
            found.append(int(text))
    return min(found)


def memory_of(device: Any = None) -> tuple[str, int]:
    """The name and the bytes of the memory that a device of JAX uses; by default the machine's."""
    if device is not None and device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit:
            return "device", int(limit)
    return "machine", machine_bytes()


def check_fits(parts: Mapping[str, int], options: Sequence[str], device: Any = None) -> None:
    """Raises a `ValueError` with the bytes that are needed if there are fewer.

    Args:
        parts: the least that is needed at one time, by what it is for.
        options: whose values decide it, as they are typed.
        device: of JAX, whose memory is used; by default the machine's is.
    """
    needed = sum(parts.values())
    where, there = memory_of(device)
    if needed > there:
        largest = max(parts, key=lambda part: parts[part])
        beside = "" if len(parts) == 1 else f", {parts[largest]:,} of them for {largest}"
        raise ValueError(
            f"this needs at least {needed:,} bytes of memory{beside}, and the {where} has {there:,}; "
            f"give a smaller {' or '.join(options)}"
        )
