"""The comparisons of docs/how-to.md: all their runs have valid settings."""

import shlex
from pathlib import Path

import pytest
from documented import ALL
from test_docs_commands import write_data

from fedsvd.comparison import _check_overrides
from fedsvd.config.compose import compose_compare
from fedsvd.errors import ConfigError

LINES = [words[2:] for page, words in ALL if page == "how-to.md" and words[:2] == ["fedsvd", "compare"]]


def check(words: list[str]) -> None:
    shared = [word for word in words if not word.lstrip("+").startswith(("compare.", "run_dir="))]
    base = shared if any(word.startswith("experiment=") for word in shared) else ["experiment=compare", *shared]
    _check_overrides(base, compose_compare(words)[1], is_new=True)


@pytest.mark.parametrize("words", LINES, ids=shlex.join)
def test_the_settings_of_all_runs_are_valid(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_data()
    check(words)


def test_an_error_names_the_run() -> None:
    contender = "+compare.contenders.shrunk=['method.shrinkage=optimal','federation.weighting=uniform']"
    with pytest.raises(ConfigError, match=r"shrunk on movies at ε = 3 cannot run: method\.shrinkage = 'optimal' is"):
        check([contender, "compare.only_contenders=[shrunk]", "compare.baseline=shrunk", "compare.epsilons=[3]",
               "compare.tuning_epsilons=[3]", "compare.only_tasks=[movies]"])  # fmt: skip
