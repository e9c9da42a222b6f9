"""The worker processes that execute the runs of a comparison."""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.config.task import TASKS
from fedsvd.errors import DivergedError, FedSVDError, describe


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        phase: ``tuning`` (evaluated on validation texts) or ``final`` (on test texts).
        task: Name of the task.
        contender: Name of the contender.
        epsilon: Privacy budget; 0 for no privacy.
        seed: Seed of the run.
        learning_rate: Learning rate of the clients.
        clipping_factor: The clipping norm, as a multiple of the ``privacy.max_grad_norm`` that the run has otherwise.
    """

    phase: str
    task: str
    contender: str
    epsilon: float
    seed: int
    learning_rate: float
    clipping_factor: float = 1.0


class Workers:
    """Worker processes that stay alive between calls, so that their caches are reused.

    Args:
        count: Number of processes, which share the CPU cores equally. They start with their first job.
    """

    def __init__(self, count: int) -> None:
        cores = max(1, (os.cpu_count() or 1) // count)
        context = get_context("spawn")
        self._stopped = context.Event()
        # Spawn instead of fork: each process loads its own model, and none inherits threads.
        self._processes = [
            ProcessPoolExecutor(1, context, _start_worker, (cores, os.getpid(), self._stopped)) for _ in range(count)
        ]
        # The task whose cached states each process holds.
        self._tasks: list[str | None] = [None] * count

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stopped.set()
        for process in self._processes:
            process.shutdown()

    def run(
        self,
        groups: Sequence[Sequence[Job]],
        overrides: Callable[[Job], list[str]],
        save: Callable[[Job, Mapping[str, Any]], None],
    ) -> None:
        """Run groups of jobs, all jobs of a group in one process.

        Args:
            groups: The groups of jobs.
            overrides: Function from a job to its overrides.
            save: Called with each job and its result when it finishes, never concurrently.

        Raises:
            BrokenProcessPool: A process was killed; the others stop after their current job.
            KeyboardInterrupt: The user has interrupted the comparison; all processes end at once.
        """
        pending, lock, stopped = [group for group in groups if group], threading.Lock(), threading.Event()

        def work(index: int) -> None:
            # A worker process inherits the mask of the thread that starts it: Ctrl-C interrupts this process alone.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            while True:
                with lock:
                    group = take_job_group(pending, self._tasks[index])
                for job in group:
                    self._tasks[index] = job.task
                    result = self._processes[index].submit(_run_job, overrides(job)).result()
                    with lock:
                        save(job, result)
                    if stopped.is_set():
                        return
                if not group:
                    return

        with ThreadPoolExecutor(len(self._processes)) as threads:
            try:
                workers = [threads.submit(work, index) for index in range(len(self._processes))]
                wait(workers, return_when=FIRST_EXCEPTION)
                stopped.set()
                for worker in workers:
                    worker.result()
            except KeyboardInterrupt:
                self._stopped.set()
                raise
            finally:
                stopped.set()


def take_job_group(pending: list[Sequence[Job]], task: str | None) -> Sequence[Job]:
    """Remove and return the first pending group of ``task``, or else the first of any task; empty if none is left."""
    same_task = [index for index, group in enumerate(pending) if group[0].task == task]
    return pending.pop(same_task[0] if same_task else 0) if pending else ()


def _start_worker(threads: int, parent: int, stopped: Event) -> None:
    threading.Thread(target=_exit_with, args=(parent, stopped), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _exit_with(parent: int, stopped: Event) -> None:
    """Exit this worker process when the comparison is interrupted or killed, so that the worker does not outlive it."""
    while os.getppid() == parent:
        if stopped.wait(1.0):
            break
    os._exit(1)


def _run_job(overrides: list[str]) -> dict[str, Any]:
    """Execute one run in a temporary directory and return its result."""
    from fedsvd import launch
    from fedsvd.runs.folder import RunFolder
    from fedsvd.runs.folder import read_rows as read_metrics

    started, unplotted = time.perf_counter(), [*overrides, "plots=false"]
    config = compose(unplotted)
    _clear_unneeded_caches(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                # The directory is deleted with its plots.
                accuracy = launch.run(config, unplotted, folder)
        except DivergedError as error:
            # Training may diverge at a high learning rate, which must not end the comparison.
            return {"accuracy": 0.0, "diverged": str(error), "overrides": overrides}
        except FedSVDError as error:
            # This says nothing about the contender: the run has no result, and is run again next time.
            return {"accuracy": None, "failed": describe(error), "overrides": overrides}
        rows, metric = read_metrics(RunFolder(folder).metrics), TASKS[config.task].metrics[0]
    if math.isnan(accuracy):
        # Such as a correlation with constant predictions.
        reason = f"the {metric.label} of the last model is undefined"
        return {"accuracy": 0.0, "diverged": reason, "overrides": overrides}
    return {
        "accuracy": accuracy,
        "model_task": config.task,
        "loss": rows[-1]["loss"],
        # Clients with models of their own evaluate them; the server then takes no time for it.
        "evaluations": {row["server_round"]: row[metric.key] for row in rows if row.get(metric.key) is not None},
        "epsilon_spent": rows[-1]["epsilon"],
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "seconds": round(time.perf_counter() - started, 2),
        "overrides": overrides,
    }


# Task, partition and seed of the previous run in this process.
_LAST: list[tuple[Any, ...]] = []


def _clear_unneeded_caches(config: Config) -> None:
    """Clear caches that this run does not share with the previous one, to save memory.

    For another partition or seed, loaded data and models are cleared; for another task, also the cached states of its
    texts.
    """
    from fedsvd.runtime.losses import clear_caches

    current = ((config.data.name, config.data.domains), config.partition, config.seed)
    if _LAST and _LAST[0] != current:
        clear_caches(keep_states=_LAST[0][0] == current[0])
    _LAST[:] = [current]
