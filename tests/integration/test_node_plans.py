"""``fedsvd privacy plan`` for real nodes, whose numbers of examples are not known to the machine that plans."""

import re

import pytest

from fedsvd.cli import main

NODE = ["federation=remote", "data=node", "data.labels=[a,b]", "privacy.accountant=rdp", "federation.num_clients=2"]


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main(["privacy", "plan", *overrides]) == 0
    return capsys.readouterr().out


def row(output: str, client: str) -> list[str]:
    [line] = [line for line in output.splitlines() if re.match(rf"│ +{client} │", line)]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_sample_rate_gives_the_cost_of_a_node_of_any_size(
    capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = plan(capsys, *NODE, "train.sample_rate=0.25", "train.num_rounds=3")
    path = tmp_path_factory.mktemp("site") / "site.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(80)))
    # The same cost as that of a client with four times as many examples as an expected batch.
    held_out = path.with_name("held_out.csv")
    held_out.write_text("text,label\na text,a\n")
    files = ["data=csv", f"data.path={path}", f"data.test_path={held_out}"]
    client = [*files, "federation.num_clients=1", "partition=iid"]
    known = plan(capsys, *client, "privacy.accountant=rdp", "train.batch_size=20", "train.num_rounds=3")

    assert "The nodes' numbers of examples are not known here" in output
    for number in ("0", "1"):
        assert row(output, number) == [number, "–", *row(known, "0")[2:]]
    assert row(known, "0")[1:3] == ["80", "0.2500"]
    assert re.search(r"│ +0\.2500 │.*│ +–, – │ +0, 1 │", output)
    assert "are not known here" not in known


def test_client_level_privacy_does_not_depend_on_numbers_of_examples(capsys: pytest.CaptureFixture[str]) -> None:
    output = plan(capsys, *NODE, "privacy=client_level", "privacy.accountant=rdp", "federation.weighting=uniform")
    assert row(output, "1")[1:3] == ["–", "1.0000"]


def test_without_a_sample_rate_the_error_says_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "plan", *NODE, "train.batch_size=20"]) == 1
    error = capsys.readouterr().err
    assert "the numbers of examples of the nodes (data=node) are not known here" in error
    assert "train.sample_rate=20/N, as a number" in error
