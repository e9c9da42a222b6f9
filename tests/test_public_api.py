"""The public names of the package: exported, imported lazily, and with examples that run."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from examples import run_example

import fedsvd
import fedsvd.flower

PUBLIC = sorted(set(fedsvd.__all__) - {"__version__"})
# Their examples use the directory of one run; see test_python_api.py.
OF_RUNS = {"train", "load_run", "Run"}


def test_all_names_are_typed_and_imported_from_where_they_are_defined() -> None:
    tree = ast.parse(Path(fedsvd.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert typed == fedsvd._MODULES
    assert sorted(typed) == PUBLIC
    assert all(name in dir(fedsvd) for name in fedsvd.__all__)
    for name, module in typed.items():
        assert getattr(fedsvd, name) is getattr(import_module(str(module)), name)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'fedsvd' has no attribute 'refactorise'"):
        fedsvd.refactorise  # noqa: B018


def test_the_import_loads_no_library() -> None:
    code = "import sys; before = set(sys.modules); import fedsvd; print(sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert not [name for name in ("torch", "numpy", "flwr", "hydra", "pydantic") if f"'{name}'" in loaded]
    assert len(ast.literal_eval(loaded)) < 60


@pytest.mark.parametrize("name", [*sorted(set(PUBLIC) - OF_RUNS), *(f"flower.{n}" for n in fedsvd.flower.__all__)])
def test_the_example_in_the_docstring_runs(name: str) -> None:
    run_example(name)
