"""The documentation: its commands are understood, its errors are the real ones, its links lead somewhere."""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from documented import ALL, FOREIGN, KEY_VALUE, PAGES, ROOT, blocks, commands
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fedsvd.cli import _COMMANDS, main
from fedsvd.commands.predict import _parse
from fedsvd.commands.usage import USAGE
from fedsvd.config.compose import check_overrides, compose, compose_audit, compose_compare


def check_train(words: Sequence[str]) -> None:
    flags = [word for word in words if word.startswith("-")]
    if flags[:1] not in ([], ["-m"], ["--multirun"]):
        return
    check_overrides([word for word in words if not word.startswith("-")], multirun=bool(flags))


def check_folder_command(words: Sequence[str]) -> None:
    compose([word for word in words if KEY_VALUE.match(word)])


CHECKS: dict[str, Callable[[Sequence[str]], object]] = {
    "train": check_train,
    "audit": compose_audit,
    "compare": compose_compare,
    "predict": _parse,
    "evaluate": check_folder_command,
    "doctor": lambda words: [word for word in words if not KEY_VALUE.match(word)] == [] or pytest.fail(str(words)),
    "trainer": lambda words: [word.split("=")[0] for word in words] == ["socket"] or pytest.fail(str(words)),
    "privacy": lambda words: compose([word for word in words[1:] if KEY_VALUE.match(word) and words[0] == "plan"]),
}


def test_commands_are_found() -> None:
    assert sum(name == "README.md" for name, _ in ALL) >= 2
    assert {"how-to.md", "models.md", "architecture.md"} <= {name for name, _ in ALL}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}: {' '.join(words)[:70]}" for page, words in ALL])
def test_every_command_is_understood(page: str, words: list[str]) -> None:
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program.removeprefix("./").startswith("scripts/"):
        path = ROOT / program
        assert path.is_file()
        assert path.stat().st_mode & 0o100
    elif program == "flwr":
        for config in re.findall(r'overrides="(.*?)"', " ".join(rest)):
            compose(config)
    elif program == "fedsvd":
        if rest[0].startswith("--"):
            assert rest[0] in USAGE
            return
        assert rest[0] in _COMMANDS
        if not is_shown_as_wrong(page, words):
            CHECKS.get(rest[0], check_folder_command)(rest[1:])
    else:
        assert program in FOREIGN


def wrong_ones() -> Iterator[tuple[str, str]]:
    """Yield ``$ command`` with the error that the page shows below it."""
    for page in PAGES:
        for body in blocks(page):
            yield from re.findall(r"^ *\$ (fedsvd .*)\n((?: *error:? (?:.*\n)+?)(?=^ *\$ |\Z))", body, re.MULTILINE)


def is_shown_as_wrong(page: str, words: Sequence[str]) -> bool:
    return any(shlex.split(command) == list(words) for command, _ in wrong_ones())


@pytest.mark.parametrize(("command", "error"), list(wrong_ones()))
def test_errors_are_shown_as_they_are(command: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[1:]) == 2

    said = " ".join(capsys.readouterr().err.split())
    expected = " ".join(error.split())
    # A long list may be cut short on the page.
    for part in expected.split("…"):
        assert part.strip(" ,") in said


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://", "mailto:")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_sections_that_messages_name_exist() -> None:
    sources = [path for folder in ("fedsvd", "server", "client", "scripts") for path in (ROOT / folder).rglob("*.py")]
    code = " ".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in sources)
    named = set(re.findall(r"docs/(\w+)\.md, (step \d|\w+)", code))
    assert ("deployment", "maintenance") in named
    for page, section in named:
        headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
        words = [re.sub(r"^(\d)\..*", r"step \1", heading.lower()) for heading in headings]
        words += [re.sub(r"^\d\. ", "", heading.lower()) for heading in headings]
        assert section in words, (page, section)


@pytest.mark.slow
def test_the_configuration_reference_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import config_reference

    assert config_reference.PATH.read_text(encoding="utf-8") == config_reference.reference(), (
        "run scripts/config_reference"
    )
    assert "| `train.learning_rate` |" in config_reference.reference()


def test_the_architecture_picture_is_up_to_date() -> None:
    import architecture

    assert architecture.PATH.read_text(encoding="utf-8") == architecture.drawing(), "run scripts/architecture"


def test_the_architecture_page_covers_every_package_and_names_existing_files() -> None:
    import architecture

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {f"fedsvd.{path.parent.name}" for path in (ROOT / "fedsvd").glob("*/__init__.py")}
    modules = {f"fedsvd.{path.stem}" for path in (ROOT / "fedsvd").glob("*.py")} - {"fedsvd.__init__"}
    in_contract = {name for layer in architecture.layers() for name in layer}
    assert in_contract == packages | modules | {"server", "client"}
    assert [name for name in sorted(in_contract) if f"`{name}`" not in page] == []
    files = re.findall(r"`((?:fedsvd|server|client)/[\w/]+\.py)`", page)
    assert len(files) > 20
    assert [name for name in files if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_the_commands_of_the_architecture_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    followed = [words for words in commands(ROOT / "docs" / "architecture.md") if words[0] == "fedsvd"]
    for words in followed:
        assert main(words[1:]) == 0

    assert len(followed) >= 3
    assert "A fine film." in capsys.readouterr().out


def test_the_lowest_supported_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {item.name: item.specifier for item in map(Requirement, project["dependencies"])}
    ranges["Python"] = SpecifierSet(project["requires-python"])
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8").partition("## Supported versions")[2]
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)

    assert {"flwr", "peft", "transformers", "opacus"} < {name for name, *_ in rows}
    for name, lowest, newest in rows:
        [bound] = [Version(item.version) for item in ranges[name] if item.operator == ">="]
        assert Version(lowest) == bound, f"run scripts/check_release, and correct {name} in docs/library.md"
        assert newest in ranges[name]
