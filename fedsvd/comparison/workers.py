"""The processes that carry out a comparison's runs."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedsvd.config.compose import compose
from fedsvd.errors import RunError


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        phase: ``tuning`` (measured on validation texts) or ``final`` (on test texts).
        task: Its name.
        contender: Its name.
        epsilon: Budget; 0 for none.
        seed: The run's.
        learning_rate: The clients'.
    """

    phase: str
    task: str
    contender: str
    epsilon: float
    seed: int
    learning_rate: float


class Workers:
    """Processes that run jobs, alive from one call to the next, so that what they hold is computed once.

    Args:
        count: Processes at a time, each with its part of the cores; started when there is something to run.
    """

    def __init__(self, count: int) -> None:
        cores = max(1, (os.cpu_count() or 1) // count)
        # Fresh processes: each loads its own model, and none inherits another's threads.
        self._processes = [
            ProcessPoolExecutor(1, get_context("spawn"), _start_worker, (cores, os.getpid())) for _ in range(count)
        ]
        # Whose texts' states each process holds.
        self._tasks: list[str | None] = [None] * count

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.shutdown()

    def run(
        self,
        waiting: Sequence[Sequence[Job]],
        words: Callable[[Job], list[str]],
        keep: Callable[[Job, Mapping[str, Any]], None],
    ) -> None:
        """Run shares of jobs, each share in one process from its first job to its last.

        Args:
            waiting: The shares.
            words: From a job to its overrides.
            keep: Told each result as it comes, one at a time.

        Raises:
            BrokenProcessPool: A process was killed; the others end after the job that they are at.
        """
        left, lock, stopped = [share for share in waiting if share], threading.Lock(), threading.Event()

        def work(number: int) -> None:
            while True:
                with lock:
                    share = take_job_group(left, self._tasks[number])
                for job in share:
                    self._tasks[number] = job.task
                    result = self._processes[number].submit(_run_one, words(job)).result()
                    with lock:
                        keep(job, result)
                    if stopped.is_set():
                        return
                if not share:
                    return

        with ThreadPoolExecutor(len(self._processes)) as threads:
            workers = [threads.submit(work, number) for number in range(len(self._processes))]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            finally:
                stopped.set()
            for worker in workers:
                worker.result()


def take_job_group(left: list[Sequence[Job]], task: str | None) -> Sequence[Job]:
    """Take the first share of a task out of what is left, or of any where it has none; nothing where none is left."""
    same = [index for index, share in enumerate(left) if share[0].task == task]
    return left.pop(same[0] if same else 0) if left else ()


def _start_worker(threads: int, parent: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: a killed comparison must not go on unseen."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _run_one(words: list[str]) -> dict[str, Any]:
    """Run once in a folder that is thrown away, and return what is kept of it."""
    from fedsvd import launch
    from fedsvd.runs.folder import RunFolder
    from fedsvd.runs.folder import read_rows as read_metrics

    started = time.perf_counter()
    _make_room(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                accuracy = launch.run(compose(words), words, folder)
        except RunError as error:
            # A rate at which training diverges is a bad rate, not the end of the comparison.
            return {"accuracy": 0.0, "diverged": str(error), "overrides": words}
        rows = read_metrics(RunFolder(folder).metrics)
    return {
        "accuracy": accuracy,
        "loss": rows[-1]["loss"],
        "epsilon_spent": rows[-1]["epsilon"],
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "seconds": round(time.perf_counter() - started, 2),
        "overrides": words,
    }


_AT: list[tuple[Any, ...]] = []


def _make_room(words: list[str]) -> None:
    """Drop what was loaded for another seed, and for another task its texts' states: they would fill the memory."""
    from fedsvd.runtime.losses import clear_caches

    config = compose(words)
    at = ((config.data.name, config.data.domains), config.partition, config.seed)
    if _AT and _AT[0] != at:
        clear_caches(keep_states=_AT[0][0] == at[0])
    _AT[:] = [at]
