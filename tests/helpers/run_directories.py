"""Synthetic run directories for the tests of reports."""

import json
from pathlib import Path
from typing import Any

from fedsvd.config.compose import compose, to_yaml

SITE = {"singular_values": [0.5, 0.25], "effective_rank": 1.9, "nuclear_norm": 0.75, "principal_angle": 0.0}


def row(number: int, accuracy: float | None, epsilon: float | None) -> dict[str, Any]:
    phases = dict.fromkeys(("seconds_train", "seconds_aggregate", "seconds_evaluate", "seconds_write"), 0.5)
    return {
        "server_round": number, "accuracy": accuracy, "loss": 0.6, "epsilon": epsilon, "clients_sampled": 2,
        "client_epsilons": {"0": epsilon, "1": None if epsilon is None else epsilon / 2}, "clients_used": 2,
        "clients_refused": {}, "skipped": False, "signal_to_noise": None, "clipped_share": 0.25, "bytes_down": 2048,
        "bytes_up": 1024, "sites": {"q": SITE} if number else {}, **phases,
    }  # fmt: skip


def write_run(folder: Path, *overrides: str, accuracy: float = 0.75, **record: Any) -> Path:
    """Write a run directory with two rounds, as `fedsvd train experiment=smoke` does."""
    config = compose(["experiment=smoke", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "overrides.json").write_text(json.dumps(["experiment=smoke", *overrides]), encoding="utf-8")
    private = config.privacy.name != "none"
    budget = config.privacy.target_epsilon
    epsilons = [None, budget / 2, budget - 0.0049] if private else [None] * 3
    rows = [row(number, value, epsilons[number]) for number, value in enumerate((0.5, None, accuracy))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    record = {
        "state": "finished",
        "parts_sent": ["B"],
        "parts_trained": ["B"],
        "versions": {"flwr": "1.41.0"},
        **record,
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    counts = [{"examples_by_class": {"negative": 9, "positive": 4}, "fingerprint": "ab" * 32}] * 2
    (folder / "partitions.json").write_text(json.dumps({"clients": counts}), encoding="utf-8")
    if private:
        client = {"num_examples": 13, "sample_rate": 0.5, "noise_multiplier": 1.25, "steps": 4, "epsilon": epsilons[2]}
        (folder / "privacy.json").write_text(json.dumps({"clients": {"0": client}}), encoding="utf-8")
    return folder
