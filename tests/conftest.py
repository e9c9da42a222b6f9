"""Settings of all tests, and their order.

On several processes the longest files start first, so that none is left over at the end.
"""

import signal
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# A shell without job control starts a command in the background with interrupts ignored, and so would be all processes
# that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent
# By CPU time, those above twenty seconds. Files that are not listed follow in alphabetical order.
LONGEST_FIRST = (
    "integration/test_deployment.py",
    "integration/test_sweep_run.py",
    "integration/test_federations.py",
    "integration/test_flower_app.py",
    "integration/test_interrupts.py",
    "integration/test_compare.py",
    "integration/test_causal_lm.py",
    "integration/test_run.py",
    "integration/test_audit.py",
    "integration/test_trained.py",
    "integration/test_other_device.py",
    # After the others that start federations: Flower fails a run whose SuperLink is away for too long, as it can be
    # while many processes start on the same cores.
    "integration/test_real_nodes.py",
)
RANKS = {ROOT / name: rank for rank, name in enumerate(LONGEST_FIRST)}
assert all(path.exists() for path in RANKS), "tests/conftest.py lists a test file that does not exist"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: RANKS.get(item.path, len(LONGEST_FIRST)))
