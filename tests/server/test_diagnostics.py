"""Diagnostics of factors with known singular values and angles."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply
from fedsvd.report.diagnostics_plot import plot_diagnostics
from fedsvd.runs.folder import read_rows
from fedsvd.wire.train_messages import ClientReport
from server.diagnostics import (
    mean_clipping_statistics,
    signal_to_noise,
    site_diagnostics,
    update_signal_to_noise,
)


def adapter(B: list[list[float]], A: list[list[float]]) -> Adapter:
    return Adapter(A={"s": torch.tensor(A)}, B={"s": torch.tensor(B)}, head={}, scale={"s": 1.0})


def test_site_diagnostics_by_hand() -> None:
    before = adapter([[0.0, 0.0]] * 3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # e₁ stays in the row space, e₂ is rotated by 60° out of it; both singular values are 3.
    rotated = [[1.0, 0.0, 0.0], [0.0, 0.5, math.sqrt(3) / 2]]
    after = adapter([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]], rotated)

    site = site_diagnostics(before, after)["s"]

    assert site["singular_values"] == pytest.approx([3.0, 3.0])
    assert site["effective_rank"] == pytest.approx(2.0)
    assert site["nuclear_norm"] == pytest.approx(6.0)
    assert site["principal_angle"] == pytest.approx(60.0, abs=1e-3)


def test_zero_product_has_rank_zero() -> None:
    zero = adapter([[0.0, 0.0]] * 3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    site = site_diagnostics(zero, zero)["s"]
    assert (site["effective_rank"], site["nuclear_norm"], site["principal_angle"]) == (0.0, 0.0, 0.0)


def test_signal_to_noise_of_a_known_update() -> None:
    generator = torch.Generator().manual_seed(0)
    before = Adapter(
        A={"s": torch.eye(8, 300)}, B={"s": torch.zeros(300, 8)}, head={"b": torch.zeros(2)}, scale={"s": 1.0}
    )
    noise = 0.5 * torch.randn(300, 8, generator=generator)
    signal = torch.zeros(300, 8)
    signal[0] = 0.5 * 2 * math.sqrt(300)  # twice the expected norm of the noise
    with_signal = before.with_parts({"B": {"s": noise + signal}})
    noise_only = before.with_parts({"B": {"s": noise}})

    assert signal_to_noise(before, with_signal, 0.5) == pytest.approx(2.0, rel=0.05)
    assert signal_to_noise(before, noise_only, 0.5) == pytest.approx(0.0, abs=0.25)
    assert signal_to_noise(before, with_signal, 0.0) is None


CLIENT_LEVEL = ["privacy=client_level", "federation.num_clients=10"]


@pytest.mark.parametrize(
    ("overrides", "ratio"),
    [
        (["train.head_learning_rate=0.05"], 0.1),
        ([], 1.0),
        # The server adds the same noise to each entry.
        ([*CLIENT_LEVEL, "train.head_learning_rate=0.05"], 1.0),
    ],
    ids=str,
)
def test_pure_noise_has_no_signal(overrides: list[str], ratio: float) -> None:
    config = compose(["experiment=smoke", "train.head=private", "train.learning_rate=0.5", *overrides])
    before = adapter([[0.0] * 4] * 20, [[0.0] * 20] * 4).with_parts({"head": {"w": torch.zeros(2, 400)}})
    # Entries with the standard deviation 0.25, exactly, so that the energy of the update is that of its noise.
    parts: dict[Part, dict[str, torch.Tensor]] = {
        "B": {"s": torch.full((20, 4), 0.25)}, "head": {"w": torch.full((2, 400), 0.25 * ratio)}
    }  # fmt: skip

    assert update_signal_to_noise(before, [Reply(0, 1, parts, 0.25)], config) == pytest.approx(0.0, abs=1e-3)
    doubled = {part: {name: 2 * tensor for name, tensor in named.items()} for part, named in parts.items()}
    # √((4 N - N) / N)
    assert update_signal_to_noise(before, [Reply(0, 1, doubled, 0.25)], config) == pytest.approx(math.sqrt(3))


def test_the_ratio_is_unknown_where_the_noise_in_a_is_mapped() -> None:
    config = compose(["experiment=smoke", "method=rolora", "privacy.standardize_inputs=true"])
    before = adapter([[0.0, 0.0]] * 3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    replies: dict[Part, Reply] = {
        "A": Reply(0, 1, {"A": {"s": torch.ones(2, 3)}}, 0.5), "B": Reply(0, 1, {"B": {"s": torch.ones(3, 2)}}, 0.5)
    }  # fmt: skip

    assert update_signal_to_noise(before, [replies["A"]], config) is None
    # √((6 - 6 / 4) / (6 / 4))
    assert update_signal_to_noise(before, [replies["B"]], config) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(("ranks", "is_known"), [("[1,2]", False), ("[1,1]", False), ("[2,2]", True)])
def test_the_ratio_is_unknown_where_clients_of_a_lower_rank_add_no_noise_to_some_entries(
    ranks: str, is_known: bool
) -> None:
    config = compose(
        ["experiment=smoke", "model.rank=2", "federation.num_clients=2", f"federation.client_ranks={ranks}"]
    )
    before = adapter([[0.0, 0.0]] * 3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).with_parts({"head": {"w": torch.zeros(6)}})
    factor = Reply(0, 1, {"B": {"s": torch.ones(3, 2)}}, 0.5)
    head = Reply(0, 1, {"head": {"w": torch.ones(6)}}, 0.5)

    known = pytest.approx(math.sqrt(3))
    assert update_signal_to_noise(before, [factor], config) == (known if is_known else None)
    # The head has one shape at all clients.
    assert update_signal_to_noise(before, [head], config) == known


def test_clipping_statistics_are_averaged_over_reporting_clients() -> None:
    reports = [ClientReport(0, 1, 0.0, clipped_share=0.2, mean_grad_norm=1.0), ClientReport(1, 1, 0.0)]
    assert mean_clipping_statistics(reports) == {"clipped_share": 0.2, "mean_grad_norm": 1.0}
    assert mean_clipping_statistics([]) == {"clipped_share": None, "mean_grad_norm": None}


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
def test_run_writes_diagnostics_to_rows_and_a_plot(privacy: str, tmp_path: Path) -> None:
    assert main(["train", "experiment=smoke", f"privacy={privacy}", f"hydra.run.dir={tmp_path}"]) == 0

    start, *rows = read_rows(tmp_path / "metrics.jsonl")
    assert start["sites"] == {}
    for row in rows:
        assert {len(site["singular_values"]) for site in row["sites"].values()} == {4}
        assert (row["signal_to_noise"] is None) == (privacy == "none")
        assert (row["clipped_share"] is None) == (privacy == "none")
    with Image.open(tmp_path / "plots" / "diagnostics.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("L").getcolors()) > 20


def test_run_without_a_server_step_has_no_plot(tmp_path: Path) -> None:
    plot_diagnostics([{"sites": {}, "server_round": 0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
