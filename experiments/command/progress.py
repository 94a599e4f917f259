"""Runs jobs side by side, each on its own devices, with progress bars on stderr."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
from rich.progress import Progress, TaskID

from experiments.command.bars import Bars
from experiments.command.devices import Devices
from experiments.command.stopping import STOP, Stopped

MOST_BARS = 12  # with more jobs, only those that run have a bar, and one more bar counts those that ended
Show = Callable[[int, str], None]  # called with how many of the total are done, and a note


def silent(done: int, note: str) -> None:
    """Reports nothing."""


class Job(NamedTuple):
    """A run of so many steps, which gets devices of its own and reports its progress."""

    total: int
    run: Callable[[Devices, Show], Any]


class _Cancelled(Exception):
    """Another job has failed."""


def side_by_side(jobs: Mapping[str, Job], *, devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """Runs all jobs and returns their results by name. At most as many run at once as there are devices.

    Jobs that run at once have separate devices. Several processes must all call this with the same jobs: these
    then run one after another on all devices, and the first process shows the progress. If a job fails, the
    others stop when they next report progress, and its error is raised.

    At the user's Ctrl-C the jobs stop when they next report progress, by `Stopped`, and what they reached is kept
    (`STOP`). The results are returned if every job has one.

    Raises:
        KeyboardInterrupt: if the user stops the script before every job has a result.
    """
    if STOP.asked.is_set():
        raise KeyboardInterrupt
    cancelled = threading.Event()
    free = shares(jax.devices() if devices is None else devices, len(jobs))
    all_fit = len(jobs) <= MOST_BARS
    with Bars() as progress, ThreadPoolExecutor(len(free)) as pool:
        overall = progress.add_task("runs", total=len(jobs), left=None, state="", note="", visible=not all_fit)
        begun = time.perf_counter()
        tasks = {
            name: progress.add_task(
                name, total=job.total, start=False, left=None, state="waiting", note="", visible=all_fit
            )
            for name, job in jobs.items()
        }

        def run(name: str) -> Any:
            own = free.pop()  # never empty: there are as many threads as shares
            try:
                progress.start_task(tasks[name])
                progress.update(tasks[name], visible=True, state="compiling")
                here = next(device for device in own if device.process_index == jax.process_index())
                with jax.default_device(here):
                    return jobs[name].run(own, _reports_to(progress, tasks[name], jobs[name].total, cancelled))
            finally:
                free.append(own)
                state = "stopped" if STOP.asked.is_set() else ""
                progress.update(tasks[name], visible=all_fit, state=state)
                progress.advance(overall)
                ended, spent = progress.tasks[overall].completed, time.perf_counter() - begun
                progress.update(overall, left=spent * (len(jobs) - ended) / ended)

        futures = {name: pool.submit(run, name) for name in jobs}
        try:
            for ended in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                ended.result()  # raises the error of the job that failed first
            return {name: future.result() for name, future in futures.items()}
        except KeyboardInterrupt:
            if jax.process_count() > 1:  # the others do not know of it
                cancelled.set()
                raise
            return _so_far(pool, futures, progress)
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _so_far(pool: ThreadPoolExecutor, futures: Mapping[str, Future], progress: Progress) -> dict[str, Any]:
    """What the jobs reached when the user stopped the script."""
    STOP.asked.set()
    for task in progress.task_ids:
        progress.update(task, state="stopping")
    pool.shutdown(wait=False, cancel_futures=True)
    wait([future for future in futures.values() if not future.cancelled()])
    STOP.keep()
    for future in futures.values():
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, Stopped):
            raise error
    if any(future.cancelled() or future.exception() for future in futures.values()):
        raise KeyboardInterrupt
    return {name: future.result() for name, future in futures.items()}


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


def _reports_to(progress: Progress, task: TaskID, total: int, cancelled: threading.Event) -> Show:
    """Moves a bar. The time left is by the speed since the first call: compilation does not count."""
    first: list[tuple[int, float]] = []

    def show(done: int, note: str) -> None:
        if cancelled.is_set():
            raise _Cancelled
        if STOP.asked.is_set():
            raise Stopped
        now = time.perf_counter()
        if not first:
            first.append((done, now))
        before, then = first[0]
        left = (total - done) * (now - then) / (done - before) if done > before else None
        progress.update(task, completed=done, left=left, state="", note=note)

    return show
