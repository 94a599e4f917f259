"""Runs side by side, each on its share of the devices, under progress bars on stderr."""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

MOST_BARS = 12  # of more jobs than this, those that run are shown, and how many have ended
Show = Callable[[int, str], None]  # told how many of the total are done, and a note


@dataclasses.dataclass(frozen=True)
class Seat:
    """Where a run sits: the devices that are its own, and whom it tells how far it is."""

    devices: tuple[Any, ...] = ()
    tell: Show = lambda done, note: None

    def __call__(self, done: int, note: str) -> None:
        self.tell(done, note)


class Job(NamedTuple):
    """A run that says how far it is."""

    total: int
    run: Callable[[Show], Any]


class _Cancelled(Exception):
    """Another run has failed, or the user wants to stop."""


def bars(unit: str) -> Progress:
    """Progress bars whose tasks have the fields `speed`, in `unit` a second, and `note`."""
    text = TextColumn("{task.percentage:>3.0f} %  {task.fields[speed]:>7,.0f} " + unit + "/s  {task.fields[note]}")
    columns = (TextColumn("{task.description:<24}"), BarColumn(16), TimeElapsedColumn(), text)
    return Progress(*columns, console=Console(stderr=True), disable=jax.process_index() > 0)


def side_by_side(
    jobs: Mapping[str, Job], unit: str = "steps", *, devices: Sequence[Any] | None = None
) -> dict[str, Any]:
    """The results of all jobs by name; as many run at once as there are devices, each on its own share of them.

    With several processes, each of which calls this with the same jobs, they run one after another on all
    devices, and the first process shows how far they are. A job has ended when it returns; where it stops
    before its total, its bar is filled. If one fails, the others stop at their next sign of life, and its
    error is raised.
    """
    cancelled = threading.Event()
    free = shares(jax.devices() if devices is None else devices, len(jobs))
    all_fit = len(jobs) <= MOST_BARS
    with bars(unit) as progress, ThreadPoolExecutor(len(free)) as pool:
        overall = progress.add_task("runs", total=len(jobs), speed=0.0, note="", visible=not all_fit)
        tasks = {
            name: progress.add_task(name, total=job.total, start=False, speed=0.0, note="", visible=all_fit)
            for name, job in jobs.items()
        }

        def run(name: str) -> Any:
            own = free.pop()  # one thread a share, so that there is one
            try:
                progress.start_task(tasks[name])
                progress.update(tasks[name], visible=True)
                here = next(device for device in own if device.process_index == jax.process_index())
                with jax.default_device(here):
                    return jobs[name].run(Seat(own, _teller(progress, tasks[name], cancelled)))
            finally:
                free.append(own)
                progress.update(tasks[name], visible=all_fit)
                progress.advance(overall)

        futures = {name: pool.submit(run, name) for name in jobs}
        try:
            for ended in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                ended.result()  # raises what it has failed with, whichever failed first
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def shares(devices: Sequence[Any], jobs: int) -> list[tuple[Any, ...]]:
    """The devices of each of the runs that go on at once; with several processes one run has them all.

    Example:
        >>> shares("abcde", 2), shares("abcde", 9)
        ([('a', 'b'), ('c', 'd')], [('a',), ('b',), ('c',), ('d',), ('e',)])
    """
    several = jax.process_count() > 1  # which must begin the same runs in the same order
    at_once = 1 if several else max(1, min(len(devices), jobs))
    size = len(devices) // at_once
    return [tuple(devices[k * size : (k + 1) * size]) for k in range(at_once)]


def _teller(progress: Progress, task: TaskID, cancelled: threading.Event) -> Show:
    """What moves a bar; its speed is from the first call on, without compilation and what was done before a resume."""
    first: list[tuple[int, float]] = []

    def show(done: int, note: str) -> None:
        if cancelled.is_set():
            raise _Cancelled
        now = time.perf_counter()
        if not first:
            first.append((done, now))
        before, then = first[0]
        progress.update(task, completed=done, speed=(done - before) / max(now - then, 1e-9), note=note)

    return show
