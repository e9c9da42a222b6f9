"""Names that other packages add, from packages that are only on the path and not installed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from fedsvd.config import plugins
from fedsvd.config.compose import compose
from fedsvd.data import loaders
from fedsvd.data.added import checked_splits
from fedsvd.errors import ConfigError, DataError
from fedsvd.methods import build_method

Add = Callable[..., None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Put a package with one module and one entry point on the path."""

    def add_package(package: str, group: str, entry: str, code: str, **yaml_files: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fedsvd.{group}]\n{entry}\n")
        for name, text in yaml_files.items():
            folder = tmp_path / package / "conf" / {"methods": "method"}.get(group, group)
            folder.mkdir(parents=True)
            (folder / f"{name}.yaml").write_text(text)
        plugins._entries.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield add_package
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    monkeypatch.undo()
    plugins._entries.cache_clear()


def test_an_added_method_has_its_yaml_file_and_its_options(add: Add) -> None:
    code = "from fedsvd.methods.fedsvd import FedSVD as Base\nclass Mine(Base):\n    pass\n"
    add("lab1", "methods", "mine = lab1:Mine", code, mine="name: mine\nrefactorize_every: 3\npivot: B\n")

    method = build_method(compose(["method=mine", "method.pivot=BA"]).method)

    assert type(method).__module__ == "lab1"
    assert (method.refactorize_every, method.pivot) == (3, "BA")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"method = 'mime' is invalid \(did you mean mine\?\)"):
        compose(["method=mime"])
    with pytest.raises(ConfigError, match=r"method.name = 'mime' is unknown; did you mean mine\?"):
        build_method({"name": "mime"})


def test_the_initialization_of_an_added_method_is_checked(add: Add) -> None:
    code = "from fedsvd.methods.rolora import RoLoRA\nclass Mine(RoLoRA):\n    def __post_init__(self): pass\n"
    add("lab9", "methods", "mine = lab9:Mine", code)

    with pytest.raises(ConfigError, match=r"method\.init_b = 'ones' is invalid; choose one of kaiming"):
        build_method({"name": "mine", "init_b": "ones"})
    with pytest.raises(ConfigError, match=r"method\.init_a = 'zeros' is invalid: B would never have a gradient"):
        build_method({"name": "mine", "init_a": "zeros"})


@pytest.mark.parametrize(
    ("package", "entry", "code", "message"),
    [
        (
            "lab2",
            "fedsvd = lab2:x",
            "x = 1",
            "the package lab2 adds 'fedsvd' to fedsvd.methods, a name that fedsvd itself",
        ),
        ("lab3", "new = lab3:x", "import nosuch", r"lab3:x cannot be imported \(ModuleNotFoundError: .*'nosuch'\)"),
        ("lab4", "new = lab4:x", "y = 1", r"lab4:x cannot be imported \(AttributeError"),
        ("lab5", "new = lab5:x", "x = 1", "method.name = 'new' is 1 of another package, which is not a method"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(add: Add, package: str, entry: str, code: str, message: str) -> None:
    add(package, "methods", entry, code)
    with pytest.raises(ConfigError, match=message):
        build_method({"name": entry.split(" ")[0]})


def test_two_packages_with_one_name_are_refused(add: Add) -> None:
    add("lab6", "methods", "new = lab6:x", "x = 1")
    add("lab7", "methods", "new = lab7:x", "x = 1")
    with pytest.raises(ConfigError, match=r"the package lab[67] and the package lab[67] both add 'new'"):
        build_method({"name": "fedsvd"})


LETTERS = """
from datasets import ClassLabel, Dataset, DatasetDict
def load(config, seed):
    rows = Dataset.from_dict({"text": ["calm", "urgent"] * 40, "label": [0, 1] * 40})
    if config.path == "one":
        rows = rows.remove_columns("label").add_column("label", [0] * 80, feature=ClassLabel(names=["calm"]))
    elif config.path == "filtered":
        rows = rows.remove_columns("label").add_column("label", [0] * 80, feature=ClassLabel(names=["calm", "urgent"]))
    elif config.path != "plain":
        rows = rows.cast_column("label", ClassLabel(names=["calm", "urgent"]))
    return DatasetDict({"train": rows, "test": rows, "other": rows})
"""


YAML = "defaults: [csv, _self_]\nname: letters\nmax_train_examples: 40\n"


def test_an_added_dataset_is_loaded_and_checked(add: Add) -> None:
    add("lab8", "data", "letters = lab8:load", LETTERS, letters=YAML)

    splits = loaders.load(compose(["data=letters"]).data, seed=0)

    assert set(splits) == {"train", "test"}
    assert (len(splits["train"]), len(splits["test"])) == (40, 80)
    assert isinstance(splits["train"].features["label"], ClassLabel)
    with pytest.raises(DataError, match=r"data.name = 'letters': .* the classes as a ClassLabel"):
        loaders.load(compose(["data=letters", "data.path=plain"]).data, seed=0)
    for path in ("one", "filtered"):
        with pytest.raises(DataError, match="labels calm; expected at least two"):
            loaders.load(compose(["data=letters", f"data.path={path}"]).data, seed=0)
    with pytest.raises(ConfigError, match=r"data.name = 'nosuch' is invalid: .*or a data set of another package"):
        compose(["data=letters", "data.name=nosuch"])


def test_a_loader_that_returns_something_else_is_refused() -> None:
    table = Dataset.from_dict({"text": ["a"]})
    for splits in (table, DatasetDict({"train": table, "test": table}), None):
        with pytest.raises(DataError, match="expected a DatasetDict"):
            checked_splits("mine", splits, one_class=False)
