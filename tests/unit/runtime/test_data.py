"""The data of a run on this machine, which all of its parts share."""

from pathlib import Path

import pytest

from fedsvd import data
from fedsvd.config.compose import compose
from fedsvd.runtime import data as run_data


def test_the_parts_of_a_run_read_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60)))
    config = compose(["data=csv", f"data.path={tmp_path / 'texts.csv'}", "partition=iid", "federation.num_clients=2"])
    loads: list[str] = []
    load = data.load_data
    monkeypatch.setattr(data, "load_data", lambda config, *args: loads.append(config.name) or load(config, *args))
    run_data.clear_data_cache()

    assert run_data.class_names(config) == ["a", "b"]
    counts = run_data.partition_counts(config)
    clients = [run_data.load_client_data(config, partition_id) for partition_id in range(2)]
    held_out = run_data.load_held_out(config)
    batches = run_data.load_test_batches(config)
    assert run_data.left_out(config) == ()

    assert loads == ["csv"]
    assert sum(sum(count.values()) for count in counts) + len(held_out) == 60
    assert [len(client.examples) for client in clients] == [sum(count.values()) for count in counts]
    assert sum(len(batch["labels"]) for batch in batches) == len(held_out)
