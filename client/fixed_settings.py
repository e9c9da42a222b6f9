"""What the owner of a node fixes about its data, so that runs cannot ask about single rows.

Whether a node's file fits a run depends on its rows: one label or number that the run does not know decides. If the
owner has fixed the settings by which the file is read, a run with others is refused without a look at the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsvd.config import Config, DataConfig
from fedsvd.config.overrides import override_values
from fedsvd.config.quoting import quote
from fedsvd.config.task import PLAIN_TEXT, TASKS
from fedsvd.errors import ConfigError, NodeDataError, RunMismatchError

# Keys of the node configuration, and the settings of a run that must have their values.
_SETTINGS = {"task": "model.task", "labels": "data.labels", "label-range": "data.label_range"}
FIXED_KEYS = tuple(_SETTINGS)
_TASK_NAMES = [name for name in TASKS if name != PLAIN_TEXT]


def columns_read(data: DataConfig) -> dict[str, str]:
    """Return the columns that a run reads, by key of the node configuration."""
    columns = {
        "text-column": data.text_column if data.row_format != "messages" else None,
        "text-pair-column": data.text_pair_column,
        "label-column": data.label_column,
        "response-column": data.response_column,
        "messages-column": data.messages_column,
    }
    return {key: name for key, name in columns.items() if name is not None}


def check_fixed_settings(config: Config, node_config: Mapping[str, object]) -> None:
    """Refuse a run that would read the node's file by other settings than the owner has fixed, if any are fixed.

    Only settings are compared; the messages do not contain those of the node.

    Args:
        config: The run's configuration.
        node_config: The node configuration; has ``data-path``.

    Raises:
        RunMismatchError: A setting of the run differs, or the run reads something that the node configuration does not
            name.
        NodeDataError: A value of the node configuration is invalid.
    """
    fixed = _read_fixed(config, node_config)
    if not fixed:
        return
    used = _reading_settings(config, str(node_config["data-path"]))
    for key, setting in _SETTINGS.items():
        if key in fixed and used.get(key) != fixed[key]:
            value = used.get(key)
            raise RunMismatchError(
                f"{setting} = {list(value) if isinstance(value, tuple) else value}, but this node accepts only the "
                f"value that its owner has set ({key} in the node configuration): set {setting} to it."
            )
    if missing := [key for key in used if key not in fixed and key not in node_config]:
        raise RunMismatchError(
            f"this node's owner has fixed what runs may read ({', '.join(key for key in fixed if key in node_config)} "
            f"in the node configuration), and this run also reads by {', '.join(missing)}, which it does not name: "
            "set them in the node configuration, or choose a run that does not read by them."
        )


def unfixed_settings(config: Config, node_config: Mapping[str, object]) -> str:
    """Return what to add to a node configuration so that its data are read by the settings of a run only.

    Args:
        config: The run's configuration as this node sees it, with its own data.
        node_config: The node configuration.
    """
    used = _reading_settings(config, str(config.data.path))
    return " ".join(f"{key}={_written(value)}" for key, value in used.items() if key not in node_config)


def _reading_settings(config: Config, path: str) -> dict[str, Any]:
    """Return the settings by which a run reads a node's file, by key of the node configuration."""
    data, task = config.data, config.model.task
    settings = {
        "task": task,
        "labels": None if data.label_column is None or task == "regression" else data.labels,
        "label-range": data.label_range,
        **columns_read(data),
        "separator": data.separator if Path(path).suffix.lower() == ".csv" else None,
        "label-separator": data.label_separator if task == "multi_label_classification" else None,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _read_fixed(config: Config, node_config: Mapping[str, object]) -> dict[str, Any]:
    """Return the fixed settings by key, with the task that the others imply; empty if none is set."""
    if not any(key in node_config for key in FIXED_KEYS):
        return {}
    task = node_config.get("task", "regression" if "label-range" in node_config else "sequence_classification")
    if task not in _TASK_NAMES:
        raise NodeDataError(
            f"node configuration: task = {task!r} is invalid: expected one of {', '.join(_TASK_NAMES)}."
        )
    fixed: dict[str, Any] = {"task": task}
    for key, example in (("labels", "[no,yes]"), ("label-range", "[0,100]")):
        if key not in node_config:
            continue
        name = key.replace("-", "_")
        try:
            values: dict[str, Any] = override_values([f"{name}={node_config[key]}"])
            # The schema reads the value as it reads that of a run.
            fixed[key] = getattr(replace(config.data, **values), name)
        except ConfigError as error:
            raise NodeDataError(
                f"node configuration: {key} = {node_config[key]!r} is invalid: expected a value of {_SETTINGS[key]}, "
                f'written as in the overrides of a run, in double quotes: {key}="{example}".'
            ) from error
    return fixed


def _written(value: str | Sequence[Any]) -> str:
    """Write a setting as in a node configuration; names of classes have quotation marks if Hydra needs them."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    plain = f"[{','.join(map(str, value))}]"
    try:
        [read] = override_values([f"labels={plain}"]).values()
    except ConfigError:
        read = None
    numbers = not any(isinstance(item, str) for item in value)
    written = plain if numbers or read == list(value) else f"[{','.join(map(quote, value))}]"
    return json.dumps(written, ensure_ascii=False)
