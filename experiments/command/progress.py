"""Runs jobs side by side, each on its own devices, with progress bars on stderr."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.command.devices import Devices

MOST_BARS = 12  # with more jobs, only those that run have a bar, and one more bar counts those that ended
Show = Callable[[int, str], None]  # called with how many of the total are done, and a note


def silent(done: int, note: str) -> None:
    """Reports nothing."""


class Job(NamedTuple):
    """A run of so many steps, which gets devices of its own and reports its progress."""

    total: int
    run: Callable[[Devices, Show], Any]


class _Cancelled(Exception):
    """Another job has failed, or the user has stopped the script."""


def bars(unit: str) -> Progress:
    """Returns progress bars whose tasks have the fields `speed`, in `unit` a second, and `note`."""
    text = TextColumn("{task.percentage:>3.0f} %  {task.fields[speed]:>7,.0f} " + unit + "/s  {task.fields[note]}")
    columns = (TextColumn("{task.description:<24}"), BarColumn(16), TimeElapsedColumn(), text)
    return Progress(*columns, console=Console(stderr=True), disable=jax.process_index() > 0)


def side_by_side(
    jobs: Mapping[str, Job], unit: str = "steps", *, devices: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Runs all jobs and returns their results by name. At most as many run at once as there are devices.

    Jobs that run at once have separate devices. Several processes must all call this with the same jobs: these
    then run one after another on all devices, and the first process shows the progress. If a job fails, the
    others stop when they next report progress, and its error is raised.
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
            own = free.pop()  # never empty: there are as many threads as shares
            try:
                progress.start_task(tasks[name])
                progress.update(tasks[name], visible=True)
                here = next(device for device in own if device.process_index == jax.process_index())
                with jax.default_device(here):
                    return jobs[name].run(own, _reports_to(progress, tasks[name], cancelled))
            finally:
                free.append(own)
                progress.update(tasks[name], visible=all_fit)
                progress.advance(overall)

        futures = {name: pool.submit(run, name) for name in jobs}
        try:
            for ended in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                ended.result()  # raises the error of the job that failed first
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def shares(devices: Sequence[Any], jobs: int) -> list[Devices]:
    """The devices of each of the jobs that run at once; with several processes one job has all of them.

    Example:
        >>> shares("abcde", 2), shares("abcde", 9)
        ([('a', 'b'), ('c', 'd')], [('a',), ('b',), ('c',), ('d',), ('e',)])
    """
    several = jax.process_count() > 1  # all processes must start the same jobs in the same order
    at_once = 1 if several else max(1, min(len(devices), jobs))
    size = len(devices) // at_once
    return [tuple(devices[k * size : (k + 1) * size]) for k in range(at_once)]


def _reports_to(progress: Progress, task: TaskID, cancelled: threading.Event) -> Show:
    """Moves a bar. Its speed counts from the first call, without compilation and without steps before a resume."""
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
