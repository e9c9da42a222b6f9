"""Peak of the memory that a process allocates (Linux only).

Resident memory is not used: it misses pages that the system has reclaimed from a process that did not read them lately.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
_SECONDS = 0.002


def allocated_mib() -> float:
    """Return this process's allocated memory in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) / 1024


@contextmanager
def sample_allocated() -> Iterator[list[float]]:
    """Sample this process's allocated memory every two milliseconds inside the context."""
    samples, done = [allocated_mib()], threading.Event()

    def sample() -> None:
        while not done.wait(_SECONDS):
            samples.append(allocated_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
