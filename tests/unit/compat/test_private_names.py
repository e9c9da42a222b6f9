"""Names of Flower and Opacus that their documentation does not list: one module each uses them, and they still work."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import opacus
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from opacus.accountants.analysis import rdp
from opacus.optimizers import DPOptimizer

from fedsvd.compat import flower
from fedsvd.compat import opacus as compat_opacus

ROOT = Path(__file__).resolve().parents[3]
# What the documentation of Flower and Opacus lists.
PUBLIC = (
    "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation", "opacus",
    "opacus.accountants", "opacus.accountants.analysis", "opacus.optimizers",
)  # fmt: skip
PRIVATE_MODULES = ("fedsvd/compat/flower.py", "fedsvd/compat/opacus.py")
MOVED = "is no longer what it was in this version of the library: adapt {} and the versions in pyproject.toml."


@cache
def sources() -> dict[str, ast.Module]:
    files = [path for folder in ("fedsvd", "server", "client") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def imported(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module), [alias.name for alias in node.names]


def test_no_other_module_imports_private_names() -> None:
    found = set()
    for path, tree in sources().items():
        for module, names in imported(tree):
            if module.partition(".")[0] not in ("flwr", "opacus") or path in PRIVATE_MODULES:
                continue
            private = module not in PUBLIC or any(name.startswith("_") for name in names)
            if private or any(name not in dir(import_module(module)) for name in names):
                found.add(f"{path}: {module} {names}")
    assert not found


def test_no_other_module_names_private_attributes() -> None:
    names = {"_message_id", "_compute_rdp", "TaskIdentity", *compat_opacus._ATTRIBUTES[2:]}
    found = {
        f"{path}: {word}"
        for path, tree in sources().items()
        if path not in PRIVATE_MODULES
        for node in ast.walk(tree)
        for word in (getattr(node, "attr", None), getattr(node, "value", None) if isinstance(node, ast.Constant) else 0)
        if word in names
    }
    assert not found


def test_flower_has_the_private_names() -> None:
    moved = "a private name of Flower " + MOVED.format(PRIVATE_MODULES[0])
    flower.set_task_identity(11, 12, 13)
    message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), 5, "train")
    flower.set_message_id(message, "an id")
    copy = flower.message_from_bytes(flower.message_to_bytes(message))
    context = Context(12, 13, {"a": "b"}, RecordDict(), {"c": 0.5})
    same = flower.context_from_bytes(flower.context_to_bytes(context))

    assert (flower.current_task_id(), message.metadata.run_id) == (11, 12), moved
    assert (copy.metadata.message_id, copy.metadata.src_node_id) == ("an id", 13), moved
    assert copy.content.config_records["config"] == {"a": 1}, moved
    assert (same.run_id, same.node_config, same.run_config) == (12, {"a": "b"}, {"c": 0.5}), moved
    assert flower.Run.create_empty(7).run_id == 7, moved
    assert flower.SUPERLINK_NODE_ID == 1, moved
    assert flower.ErrorCode.REPLY_MESSAGE_UNAVAILABLE != flower.ErrorCode.CLIENT_APP_CRASHED, moved


def test_flower_has_the_programs() -> None:
    programs = {entry.name: entry.value for entry in entry_points(group="console_scripts")}
    assert programs["flwr"] == "flwr.cli.app:app"
    assert flower.COMMAND_LINE == "from flwr.cli.app import app; app()"
    assert flower.CLIENT_APP_PROCESS in programs


def test_node_configurations_are_parsed_or_refused(tmp_path: Path) -> None:
    assert flower.parse_node_config("partition-id=0 data-path='/a b'") == {
        "partition-id": 0,
        "data-path": "/a b",
    }
    for text in ("partition-id=zero", str(tmp_path / "missing.toml")):
        with pytest.raises(ValueError, match=r"."):
            flower.parse_node_config(text)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_has_the_private_names() -> None:
    moved = "a private name of Opacus " + MOVED.format(PRIVATE_MODULES[1])
    weight = torch.nn.Parameter(torch.ones(1, 2))
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight = weight
    own = set(vars(weight))
    hooked = opacus.GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD([weight], lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1
    )
    hooked(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    hooked(torch.ones(3, 2))
    left = set(vars(weight)) - own
    hooked.remove_hooks()
    compat_opacus.delete_attributes(weight)

    assert {"grad_sample", "summed_grad", "_forward_counter"} <= left <= set(compat_opacus._ATTRIBUTES), moved
    assert set(vars(weight)) == own, moved
    compat_opacus.cache_renyi_curves()
    before = rdp._compute_rdp.cache_info().misses
    first = rdp.compute_rdp(q=0.01, noise_multiplier=1.234567, steps=3, orders=[2.0, 3.0])
    second = rdp.compute_rdp(q=0.01, noise_multiplier=1.234567, steps=6, orders=[2.0, 3.0])
    assert rdp._compute_rdp.cache_info().misses == before + 2, moved
    assert list(second) == [2 * value for value in first], moved
