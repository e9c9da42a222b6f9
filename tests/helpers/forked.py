"""The ``fedsvd`` command in processes that are forked from one that has already imported what takes seconds."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from flower_home import RAY
from loopback import wait_until

# What `fedsvd train` has imported at the end of a run, by the modules that import the rest.
PRELOADED = (
    "client.app", "client.handlers", "server.app", "fedsvd.launch.in_process", "fedsvd.commands.train",
    "transformers.models.bert.modeling_bert", "opacus.accountants",
)  # fmt: skip


class ForkedCommand:
    """A command in a process group of its own, as a terminal starts it.

    Args:
        folder: Its working directory; created if absent.
        arguments: The arguments of ``fedsvd``.
        file_size: Largest size of a file in bytes, beyond which the disk is full; None for no limit.
    """

    def __init__(self, folder: Path, *arguments: str, file_size: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        context = _context()
        output, output_end = context.Pipe(duplex=False)
        errors, errors_end = context.Pipe(duplex=False)
        self._streams = [os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end in (output, errors)]
        self._process = context.Process(target=_run, args=(str(folder), arguments, file_size, output_end, errors_end))
        self._process.start()
        for end in (output, output_end, errors, errors_end):
            end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        wait_until(lambda: self.returncode is not None or os.getpgid(self.pid) == self.pid, 60, "the process group")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        """Kill the process group, and wait for the command's end."""
        os.killpg(self.pid, signal.SIGKILL)
        self.communicate(60)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end of the command, and return its standard output and error."""
        with ThreadPoolExecutor(2) as pool:
            output, errors = (pool.submit(stream.read) for stream in self._streams)
            self._process.join(timeout)
            if self.returncode is None:
                os.killpg(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self._process), timeout)
        for stream in self._streams:
            stream.close()
        return output.result(), errors.result()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # Without effect on a server that is running.
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _run(
    folder: str, arguments: tuple[str, ...], file_size: int | None, output: Connection, errors: Connection
) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(RAY)
    for number, end in ((1, output), (2, errors)):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    from fedsvd.cli import main

    sys.argv = ["fedsvd", *arguments]
    sys.exit(main(arguments))
