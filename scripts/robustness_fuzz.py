"""Coverage-guided fuzzing by atheris (https://github.com/google/atheris) of a check that takes bytes.

usage: robustness_fuzz.py MODULE CHECK RUNS OUTPUT CORPUS

``CHECK`` is a function of ``MODULE`` without arguments. It returns a function from `Source` to the name of the outcome,
which raises whatever the code under test should not raise.
"""

import importlib
import json
import logging
import math
import os
import random
import struct
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

SEED = 21
SEEDS, MAX_BYTES = 64, 256
INSTRUMENTED = ["server", "client", "fedsvd"]
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 5e-324, 1e-9, 1e300, -1e300, 1e38, 1e39)
T = TypeVar("T")


class Source:
    """Decisions that are read from bytes, so that a fuzzer can change them one by one; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def bytes(self, size: int) -> bytes:
        taken = self.data[self.position : self.position + size]
        self.position += size
        return taken.ljust(size, b"\0")

    def integer(self, low: int, high: int) -> int:
        size = ((high - low).bit_length() + 7) // 8
        return low + int.from_bytes(self.bytes(size), "little") % (high - low + 1)

    def choice(self, values: Sequence[T]) -> T:
        return values[self.integer(0, len(values) - 1)]

    def number(self) -> float:
        kind = self.integer(0, 15)
        return SPECIAL[kind] if kind < len(SPECIAL) else float(struct.unpack("<d", self.bytes(8))[0])

    def blob(self, longest: int) -> bytes:
        return self.bytes(self.integer(0, longest))

    def text(self, longest: int) -> str:
        return self.blob(longest).decode("utf-8", errors="replace")


Check = Callable[[Source], str]


class Recorder:
    """Count the outcomes of a check, and keep one example of each kind of fault."""

    def __init__(self, check: Check) -> None:
        self.check, self.outcomes, self.faults = check, Counter[str](), dict[str, str]()

    def __call__(self, data: bytes) -> None:
        try:
            self.outcomes[self.check(Source(data))] += 1
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            self.outcomes["fault"] += 1
            self.faults.setdefault(f"{Path(frame.filename).name}:{frame.name}: {error!r}"[:200], data.hex())

    def figures(self) -> dict[str, Any]:
        return {"tried": self.outcomes.total(), "outcomes": dict(sorted(self.outcomes.items())), "faults": self.faults}


def fuzz(module: str, check: str, runs: int, work: Path) -> dict[str, Any]:
    """Fuzz in a process of its own, since atheris ends its process.

    Returns:
        The number of inputs, the outcomes and their counts, the faults, and the size of the corpus.
    """
    corpus, output = work / check, work / f"{check}.json"
    corpus.mkdir(parents=True, exist_ok=True)
    # Without seeds, the fuzzer takes long to find inputs with several changes.
    rng = random.Random(SEED)
    for number in range(SEEDS):
        (corpus / f"seed-{number}").write_bytes(rng.randbytes(rng.randrange(MAX_BYTES)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, module, check, str(runs), str(output), str(corpus)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if not output.exists():
        raise RuntimeError(completed.stderr[-4000:])
    figures: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return figures | {"corpus": len(list(corpus.iterdir()))}


def main(module: str, name: str, runs: int, output: Path, corpus: str) -> None:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        check = getattr(importlib.import_module(module), name)()
    logging.disable(logging.CRITICAL)
    recorder = Recorder(check)

    def one(data: bytes) -> None:
        recorder(data)
        if recorder.outcomes.total() >= runs:
            output.write_text(json.dumps(recorder.figures()), encoding="utf-8")
            os._exit(0)

    options = [f"-max_len={MAX_BYTES}", f"-seed={SEED}", "-len_control=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, corpus], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
