"""Mutants: change one operator, number or argument of the code at a time, and see whether the unit tests notice.

mutmut (https://mutmut.readthedocs.io) makes the mutants in a copy of the working tree, and runs the tests that reach
the changed function. Lines that raise or log are not mutated, since their words matter only to readers; neither are
decorated functions, which mutmut cannot change. Where a package has more mutants than fit, a random sample is drawn.
"""

import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEED = 21
KILLED = ("killed", "timeout", "segfault")
COPIED = ("client", "conf", "scripts", "docs", "README.md", "CHANGELOG.md", "requirements.lock", "tests")


@dataclass(frozen=True)
class Group:
    """Code to mutate (patterns of files), the tests that are to notice, and the number of mutants to try."""

    mutated: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int


REPLY_CHECKS = ("replies", "reply_bounds", "reply_aggregation", "robust_mean", "running_mean")
REPLY_TESTS = tuple(
    f"tests/server/test_{name}.py"
    for name in ("replies", "reply_bounds", "robust_mean", "fuzzed_replies", "unreadable_replies", "strategy")
)
GROUPS = {
    "secagg": Group(("fedsvd/secagg/*",), ("tests/unit/secagg", "tests/server/test_secure_grid.py"), 300),
    "server": Group(tuple(f"server/{name}.py" for name in REPLY_CHECKS), REPLY_TESTS, 200),
    "lora": Group(("fedsvd/lora/*",), ("tests/unit/lora",), 200),
    "privacy": Group(("fedsvd/privacy/*",), ("tests/unit/privacy",), 250),
}


def settings(group: Group) -> str:
    """Return the settings of mutmut as the file ``setup.cfg``."""
    values: dict[str, Sequence[str]] = {
        "source_paths": ("fedsvd", "server"),
        "only_mutate": group.mutated,
        "also_copy": COPIED,
        "pytest_add_cli_args_test_selection": group.tests,
        "pytest_add_cli_args": ("-m", "not slow", "-p", "no:cacheprovider"),
        "timeout_multiplier": ("5.0",),
        # Lines that raise or log, and further lines of their words.
        "do_not_mutate_patterns": (r"^\s*raise\s", r'^\s+f?"[^"]*"$', r"^\s*(logger|warnings)\."),
    }
    lines = ["[mutmut]"]
    for key, items in values.items():
        lines += [f"{key} = {items[0]}"] if len(items) == 1 and key.startswith("timeout") else [f"{key} ="]
        lines += [] if key.startswith("timeout") else [f"    {item}" for item in items]
    return "\n".join(lines) + "\n"


def copy_tree(to: Path) -> None:
    """Copy the files that git knows, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            # With the time of its last change, by which mutmut knows the files to mutate again.
            shutil.copy2(ROOT / name, to / name)


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut and return what it prints; its exit status says nothing about its mutants."""
    command = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def statuses(folder: Path) -> dict[str, str]:
    """Return the status of each mutant by its name."""
    return dict(re.findall(r"^ +(\S+): (.+)$", mutmut(folder, "results", "--all", "True"), re.MULTILINE))


def changed_lines(folder: Path, name: str) -> str:
    """Return the file and the lines that a mutant changes, as in a diff without context."""
    lines = mutmut(folder, "show", name).splitlines()
    file = next((line[4:].split("\t")[0] for line in lines if line.startswith("--- ")), name)
    changed = [f"{line[0]} {line[1:].strip()}" for line in lines if re.match(r"[-+](?![-+])", line)]
    return "\n".join([file, *changed])


def sample(names: Iterable[str], size: int) -> list[str]:
    """Draw mutants from the seed; a larger sample contains each smaller one."""
    shuffled = sorted(names)
    random.Random(SEED).shuffle(shuffled)
    return sorted(shuffled[:size])


def run_group(name: str, work: Path, size: int | None, earlier: dict[str, str]) -> dict[str, Any]:
    """Try the mutants of one group.

    Args:
        name: A key of `GROUPS`.
        work: Scratch directory. Mutants that were killed there earlier are not tried again.
        size: Number of mutants; None for the group's own.
        earlier: Reasons why survivors do not matter, by their changed lines.

    Returns:
        The figures and the survivors of the group.
    """
    group, folder = GROUPS[name], work / name
    folder.mkdir(parents=True, exist_ok=True)
    copy_tree(folder)
    (folder / "setup.cfg").write_text(settings(group), encoding="utf-8")
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    # A pattern without a match: mutmut makes the mutants and finds out which tests reach them, and stops.
    mutmut(folder, "run", "--max-children", "1", "no.such.mutant")
    known = statuses(folder)
    drawn = sample(known, size or group.sample)
    left = [mutant for mutant in drawn if known[mutant] not in KILLED]
    if left:
        mutmut(folder, "run", "--max-children", "1", *left)
    found = {mutant: status for mutant, status in statuses(folder).items() if mutant in set(drawn)}
    return summary(group, len(known), found, folder, earlier)


def summary(group: Group, total: int, found: dict[str, str], folder: Path, earlier: dict[str, str]) -> dict[str, Any]:
    """Return figures and survivors, each with the reason why it does not matter, if somebody has looked at it."""
    counts = Counter("killed" if status in KILLED else "survived" for status in found.values())
    survivors = sorted(changed_lines(folder, name) for name in found if found[name] not in KILLED)
    return {
        "code": list(group.mutated),
        "tests": list(group.tests),
        "mutants": total,
        "tried": len(found),
        "killed": counts["killed"],
        "survivors": [{"change": change, "reason": earlier.get(change, "")} for change in survivors],
    }
