"""What may change when a run is resumed; every other difference is refused, by name.

A run has one guarantee and one model. Rounds under different privacy settings have no common guarantee, and rounds on
different data could train on examples that are held out elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.config import Config
from fedsvd.config.compose import as_dict, compose, read_config
from fedsvd.config.flat import flatten
from fedsvd.config.paths import absolute_values, override_key
from fedsvd.config.quoting import read_path
from fedsvd.errors import ConfigError, ResumeError
from fedsvd.launch.resumed_data import NEW_RUN, check_data
from fedsvd.methods import build_method
from fedsvd.privacy.round_settings import recorded_settings, round_settings
from fedsvd.runs.folder import RunFolder, read_rows_if_any

# Keys whose value may differ from that of the earlier process, and why this changes neither guarantee nor data.
MAY_CHANGE: Mapping[str, str] = {
    "train.num_rounds": "at least the rounds that are done; the ledgers account for further rounds (not client_level)",
    "privacy.max_epsilon": "limits the ledgers, which count all rounds",
    "train.learning_rate": "not part of the mechanism",
    "train.lr_scheduler_type": "not part of the mechanism",
    "train.warmup_rounds": "not part of the mechanism",
    "train.eval_every": "when the server evaluates",
    "train.early_stopping": "when the run ends",
    "train.keep_best": "which adapters are kept",
    "train.eval_batch_size": "speed and memory",
    "train.physical_batch_size": "speed and memory",
    "train.prefix_cache_mib": "speed and memory",
    "train.grad_sample_mode": "speed and memory",
    "model.attn_implementation": "speed and memory",
    "model.gradient_checkpointing": "speed and memory",
    "model.device_map": "speed and memory",
    "data.path": "the file may have moved: its content is compared",
    "data.test_path": "the file may have moved: its content is compared",
    "federation.name": "local and simulation only, which have the same clients and ledgers",
    "federation.min_replies": "when a round is skipped",
    "federation.min_completion": "when a round is skipped",
    "federation.round_timeout_s": "waiting",
    "federation.connect_timeout_s": "waiting",
    "federation.retries": "not fewer with privacy: an interrupted round may have charged for each attempt",
    "federation.retry_after_s": "waiting",
    "federation.max_num_examples": "a bound on replies",
    "federation.max_reply_norm": "a bound on replies",
    "federation.client_num_cpus": "resources",
    "federation.client_num_gpus": "resources",
    "federation.ray_address": "resources",
    "federation.superlink": "connection",
    "federation.root_certificates": "connection",
    "federation.connection": "connection",
    "federation.server_runs": "connection",
    "federation.fetch": "connection",
    "tracking": "where rows are logged",
    "device": "hardware",
    "float32_matmul_precision": "hardware",
    "plots": "plots",
    "run_dir": "the location of the run",
    "resume": "the location of the run",
}  # fmt: skip
_SIMULATED = ("local", "simulation")


def check_directory(folder: Path, overrides: Sequence[str], keys: Sequence[str]) -> None:
    """Check that the overrides of a resumed run or sweep name no other directory.

    Args:
        folder: The directory to resume.
        overrides: The new overrides.
        keys: The keys that name a directory.

    Raises:
        ResumeError: One of them does not name ``folder``.
    """
    for item in overrides:
        key, value = override_key(item), item.partition("=")[2]
        if key in keys and value not in ("", "null") and Path(read_path(value)).resolve() != folder.resolve():
            raise ResumeError(
                f"{key} = {read_path(value)!r} is another directory than resume = {str(folder)!r}, and what is resumed "
                f"stays in its own. Leave {key} out, or leave resume out to start anew in another directory."
            )


def check_run_dir(config: Config) -> None:
    """Check that a resumed run knows its directory, which Flower's own command does not choose.

    Raises:
        ConfigError: ``resume`` is set without ``run_dir``: the run would start anew in another directory.
    """
    if config.resume is not None and not config.run_dir:
        raise ConfigError(
            f"resume = {config.resume!r} needs run_dir, too: it is the directory of the run on the machine of the "
            "ServerApp. Submit the run with all of its overrides, and with resume=RUN_DIR run_dir=RUN_DIR."
        )


def check_resume(folder: RunFolder, config: Config, facts: Mapping[str, Any]) -> None:
    """Check that a run may be resumed with a configuration, before anything in its directory changes.

    Args:
        folder: Directory of the run to resume.
        config: The configuration to resume it with.
        facts: The description of the run with this configuration, see `fedsvd.runtime.description.describe_run`.

    Raises:
        ResumeError: A setting differs that must not change, the privacy settings of a round differ, fewer rounds are
            requested than are done, or the classes, the data or the public text differ.
    """
    check_settings(folder, config)
    check_data(folder, config, facts)


def check_settings(folder: RunFolder, config: Config) -> None:
    """Check that only keys of `MAY_CHANGE` differ from the configuration and the rows that a run had before.

    Raises:
        ResumeError: Another key differs, or fewer rounds are requested than are done.
        ConfigError: The run's earlier configuration cannot be read.
    """
    earlier = _earlier_config(folder)
    if earlier is not None:
        _check_config(folder, earlier, config)
    _check_rows(folder, config)


def check_new(folder: RunFolder) -> None:
    """Check that a run which is not resumed replaces no rounds of an earlier one.

    Raises:
        ResumeError: The directory records rounds.
    """
    done = _rounds_done(folder)
    if done:
        raise ResumeError(
            f"{folder.root} records {done} rounds, and a new run would replace what is known of them: resume it (which "
            "needs its checkpoints), or choose another directory with run_dir=DIR."
        )


def _check_config(folder: RunFolder, earlier: Config, config: Config) -> None:
    changes = [
        f"{key} from {_shown(old)} to {_shown(new)}"
        for key, old, new in _differences(earlier, config)
        if not _may_change(key, old, new, config.privacy.name)
    ]
    if changes:
        raise ResumeError(
            f"resume = {str(folder.root)!r} cannot change {', '.join(changes)}: a run keeps the privacy settings, data "
            "and model that it started with. Leave the override out (flwr run needs all overrides of the run again), "
            f"or {NEW_RUN}; docs/runs.md lists what may change."
        )
    if config.privacy.name == "client_level" and config.train.num_rounds != earlier.train.num_rounds:
        raise ResumeError(
            f"resume = {str(folder.root)!r} cannot change train.num_rounds from {earlier.train.num_rounds} to "
            f"{config.train.num_rounds}: with privacy.name = client_level, a run is calibrated and charged for its "
            f"planned rounds. Leave train.num_rounds out, or {NEW_RUN}."
        )


def _earlier_config(folder: RunFolder) -> Config | None:
    """Return the configuration that the run had; None if it wrote none yet."""
    if folder.config.exists():
        return read_config(folder.config)
    # A run on real nodes that has not been fetched.
    try:
        return compose(json.loads(folder.overrides.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _differences(earlier: Config, config: Config) -> Iterator[tuple[str, Any, Any]]:
    old, new = (flatten(comparable_values(item)) for item in (earlier, config))
    for key in dict.fromkeys([*new, *old]):
        # The options of two methods differ anyway.
        if key.startswith("method.") and key != "method.name" and old["method.name"] != new["method.name"]:
            continue
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def comparable_values(config: Config) -> dict[str, Any]:
    """Return nested values with absolute paths, and with defaults for options that a method did not have before."""
    values = as_dict(config)
    options = dataclasses.asdict(build_method(config.method))  # type: ignore[call-overload]
    values["method"] = {"name": config.method["name"], **options}
    for key, path in absolute_values(config).items():
        group, name = key.split(".")
        values[group][name] = str(Path(path).resolve())
    return values


def _may_change(key: str, old: Any, new: Any, privacy: str) -> bool:
    if key == "federation.name":
        return old in _SIMULATED and new in _SIMULATED
    if key == "federation.retries" and privacy != "none":
        return bool(new >= old)
    return key in MAY_CHANGE or key.partition(".")[0] == "tracking"


def _check_rows(folder: RunFolder, config: Config) -> None:
    """Compare the settings that the rounds recorded, whatever the configuration file says."""
    rows, done = read_rows_if_any(folder.metrics), _rounds_done(folder)
    if config.train.num_rounds < done:
        raise ResumeError(
            f"train.num_rounds = {config.train.num_rounds} is below the {done} rounds that {folder.root} has done: "
            f"give {done} or more, or {NEW_RUN}."
        )
    settings = round_settings(flatten(as_dict(config)))
    for row in rows:
        for key, old in (recorded_settings(row) or {}).items():
            if key not in ("max_epsilon", "mechanism") and settings.get(key) != old:
                new = _shown(settings.get(key))
                raise ResumeError(
                    f"resume = {str(folder.root)!r} cannot change the privacy setting {key} from {_shown(old)}, as in "
                    f"round {row['server_round']}, to {new}: the rounds would have no common guarantee. Leave it as it "
                    f"was, or {NEW_RUN}."
                )


def _rounds_done(folder: RunFolder) -> int:
    # A process may be interrupted between writing a checkpoint and its row.
    numbers = [path.name.removeprefix("round-") for path in folder.checkpoints.glob("round-*")]
    saved = [int(number) for number in numbers if number.isdigit()]
    return max([*saved, *(row["server_round"] for row in read_rows_if_any(folder.metrics))], default=0)


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
