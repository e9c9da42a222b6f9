"""The data of a run that is resumed: other held-out examples, and other data of a client, are refused."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import ResumeError
from fedsvd.launch.resumed_data import check_data, held_out_change
from fedsvd.runs.folder import RunFolder, write_json
from fedsvd.runtime.data import class_names, clear_data_cache
from fedsvd.runtime.description import describe_held_out, describe_partitions


def write_texts(path: Path, texts: list[str]) -> None:
    lines = [f"{text},{'ab'[number % 2]}\n" for number, text in enumerate(texts)]
    path.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    # As in another process.
    clear_data_cache()


def summary(description: dict[str, Any]) -> str:
    return f"{description['num_examples']} examples (SHA-256 {description['fingerprint'][:12]}…)"


def assert_refused(folder: RunFolder, config: Config, change: str) -> None:
    message = (
        f"resume = {str(folder.root)!r} cannot change {change}: the run would mix what it was trained on with other "
        "data. Restore the data, or start a new run (without resume)."
    )
    with pytest.raises(ResumeError, match=f"^{re.escape(message)}$"):
        check_data(folder, config, {"held_out": describe_held_out(config)})


def test_changed_examples_are_refused_with_their_fingerprints(tmp_path: Path) -> None:
    train, test, folder = tmp_path / "train.csv", tmp_path / "test.csv", RunFolder(tmp_path / "run")
    own, held_out_texts = [f"text {number}" for number in range(24)], [f"new {number}" for number in range(6)]
    write_texts(train, own)
    write_texts(test, held_out_texts)
    paths = [f"data.path={train}", f"data.test_path={test}"]
    config = compose(["experiment=smoke", "data=csv", "partition=iid", "partition.min_partition_size=1", *paths])
    held_out, clients = describe_held_out(config), describe_partitions(config)["clients"]
    write_json(folder.record, {"held_out": held_out})
    write_json(folder.partitions, {"clients": clients})
    write_json(folder.classes, class_names(config))
    check_data(folder, config, {"held_out": held_out})

    write_texts(test, [*held_out_texts, "one more"])
    after = describe_held_out(config)
    assert (held_out["num_examples"], after["num_examples"]) == (6, 7)
    assert held_out_change({"held_out": held_out}, after) == (summary(held_out), summary(after))
    # A run of an earlier version, which recorded none.
    assert held_out_change({}, after) is None
    assert_refused(folder, config, f"the held-out examples from {summary(held_out)} to {summary(after)}")

    write_texts(test, held_out_texts)
    write_texts(train, [*own[:-1], "changed"])
    changed = describe_partitions(config)["clients"]
    [number] = [i for i in range(2) if clients[i] != changed[i]]
    assert_refused(
        folder, config, f"the data of client {number} from {summary(clients[number])} to {summary(changed[number])}"
    )
