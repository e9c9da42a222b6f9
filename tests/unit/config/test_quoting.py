"""Paths with any character a shell can pass: quoted for Hydra, and in commands that are pasted into a shell."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from fedsvd.commands.arguments import normalize, resumed_folder
from fedsvd.commands.run_directory import prepare_run
from fedsvd.config.compose import compose, hydra_settings, read_config, to_yaml
from fedsvd.config.quoting import command, path_override, plain_text, quote, read_path, resume_command

PATHS = [
    "sw/model.rank=2,seed=0", "two words", "Übung", "it's", 'say "x"', "a,b", "[x]{y}", "(z)", "tail\\", "a\\'b",
    "x\\\\", "${now:%Y}", "\\${x}", "$HOME", "#x", " lead", "true", "3", "*", "~", "%d", "a\\b", "\\\\${q}", "'quoted'",
    "a/${ b", "${a${b}", "next\x85line", "line\u2028separator", "C:\\New",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_hydra_reads_the_quoted_path_unchanged(path: str) -> None:
    assert compose([path_override("run_dir", path)]).run_dir == path
    assert read_path(quote(path)) == path


@pytest.mark.parametrize("path", PATHS)
def test_the_configuration_in_a_run_directory_has_the_path_unchanged(path: str, tmp_path: Path) -> None:
    config = compose(["data=csv", path_override("data.path", path)])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")

    assert config.data.path == path
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["seed=1", "run_dir='a b'"], "a b"), (["run_dir=a", "run_dir=b"], None), (["run_dir=a/${seed}"], None),
        (["run_dir=3"], None), (["run_dir=a,b"], None), (["run_dir="], None), (["run_dir=null"], None), ([], None),
    ],
)  # fmt: skip
def test_plain_text_is_one_text_that_depends_on_no_key(overrides: list[str], text: str | None) -> None:
    assert plain_text(overrides, "run_dir") == text


def test_run_directory_that_depends_on_other_keys_is_resolved() -> None:
    assert compose(["run_dir=a/${seed}", "seed=3"]).run_dir == "a/3"
    assert compose(["run_dir=a", "data=csv", "data.path=${run_dir}"]).data.path == "a"


@pytest.mark.parametrize("path", PATHS)
def test_a_path_after_resume_is_taken_as_the_shell_passes_it(path: str, tmp_path: Path) -> None:
    folder = tmp_path / path
    folder.mkdir(parents=True)

    for written in (str(folder), quote(str(folder))):
        [override] = normalize([f"resume={written}"])
        assert compose([override]).resume == str(folder)
        assert resumed_folder([override]) == folder


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sweep", [True, False])
def test_a_printed_command_can_be_pasted_into_a_shell(path: str, sweep: bool) -> None:
    printed = resume_command(Path("/runs") / path, sweep=sweep)
    split = subprocess.run(["bash", "-c", f"printf '%s\\n' {printed}"], capture_output=True, text=True, check=True)

    expected = ["fedsvd", "train", *(["-m"] if sweep else []), f"resume={Path('/runs') / path}"]
    assert split.stdout.split("\n")[:-1] == expected
    assert shlex.split(command(["a b"])) == ["fedsvd", "a b"]


def test_a_relative_path_after_resume_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resumed_folder(normalize(["resume=a=b"])) == tmp_path / "a=b"
    assert resumed_folder(normalize(["resume=null"])) is None
    assert resumed_folder(["seed=1"]) is None


def test_a_separator_without_quotation_marks_is_quoted_for_hydra(tmp_path: Path) -> None:
    assert normalize(["data=csv", "data.separator=;"]) == ["data=csv", "data.separator=';'"]
    # As an earlier version stored the overrides of a run from Python.
    stored = ["model=tiny", "data=csv", "data.path=a.csv", "data.separator=;"]
    (tmp_path / "overrides.json").write_text(json.dumps(stored), encoding="utf-8")

    prepared = prepare_run(normalize([f"resume={tmp_path}"]))
    assert hydra_settings(prepared.arguments).data.separator == ";"
