"""Check what is published: the wheel, and the supported versions of its dependencies in empty environments."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path

from install_locked import LOCK, PIP, pip_options, uv_environment

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("lowest", "locked", "newest")
# The packages whose versions docs/library.md lists.
LISTED = ("flwr", "peft", "transformers", "opacus", "torch", "hydra-core", "datasets", "numpy", "pydantic")
# Those that depend on the listed packages most, and are fast.
TESTS = ("flower", "lora", "methods", "privacy", "secagg", "trainer", "training", "wire", "compat")
# Needs a package that only the tests need.
SKIPPED = "tests/unit/privacy/test_accounting_pld.py"
UV = (sys.executable, "-m", "uv", "pip")


def call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=cwd, env=os.environ | environment, check=True)


def build(folder: Path) -> Path:
    """Build the wheel and the source distribution, and check their metadata; return the wheel."""
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".")
    call(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir())
    [wheel] = folder.glob("*.whl")
    return wheel


def check_app(folder: Path) -> None:
    """Check a copy of the tracked files as ``flwr app publish`` does before it sends them."""
    # The package has a function of this name.
    publish = import_module("flwr.cli.app_cmd.publish")
    for name in subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    publish._validate_files(publish._collect_file_paths(folder))


def uv_sources() -> Mapping[str, str]:
    """Return the environment that gives uv the package sources of pip."""
    listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    return uv_environment(pip_options(listing)) or {}


def check_versions(versions: str, python: str, wheel: Path, folder: Path, *, smoke: bool) -> None:
    """Install the wheel with one choice of versions, run a small federation from it, and the unit tests."""
    call(sys.executable, "-m", "uv", "venv", "--quiet", "--no-python-downloads", "--python", python, folder / "venv")
    program = folder / "venv" / "bin" / "python"
    install, sources = (*UV, "install", "--quiet", "--python", program), uv_sources()
    if versions == "locked":
        call(*install, "--constraint", LOCK, wheel, **sources)
    else:
        resolution = {"lowest": "lowest-direct", "newest": "highest"}[versions]
        call(*install, "--resolution", resolution, "--requirement", "pyproject.toml", **sources)
        call(*install, "--no-deps", wheel, **sources)
    call(folder / "venv" / "bin" / "fedsvd", "train", "experiment=smoke", "run_dir=run", cwd=folder)
    rows = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3, "the run should have one row before training and one after each of its two rounds"
    if not smoke:
        call(*install, "--constraint", LOCK, "pytest", "pytest-xdist", "hypothesis", **sources)
        tests = [f"tests/unit/{name}" for name in TESTS]
        # A warning of an old version is no error.
        lenient = ("-o", "filterwarnings=default", "-p", "no:cacheprovider")
        options = ("-q", "-m", "not slow", *lenient, "--ignore", SKIPPED)
        call(program, "-m", "pytest", *options, *tests, OMP_NUM_THREADS="1")
    print(f"{versions} versions on Python {python}:", ", ".join(installed(folder / "venv")), flush=True)


def installed(environment: Path) -> list[str]:
    """Return the listed packages of an environment with their versions."""
    [packages] = (environment / "lib").glob("python*/site-packages")
    found = {item.name: item.version for item in distributions(path=[str(packages)])}
    return [f"{name} {found[name]}" for name in LISTED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=VERSIONS, help="default: all three")
    parser.add_argument("--python", default="3.11", help="version or path of an installed Python")
    parser.add_argument("--smoke", action="store_true", help="without the unit tests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedsvd-release-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        check_app(folder / "app")
        for versions in options.only or VERSIONS:
            (folder / versions).mkdir()
            check_versions(versions, options.python, wheel, folder / versions, smoke=options.smoke)


if __name__ == "__main__":
    main()
