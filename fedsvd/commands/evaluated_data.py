"""Which texts ``fedsvd evaluate`` scores: the held-out set of the run's own data, or all rows of data that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd.commands.training_texts import FILES, training_texts
from fedsvd.config import Config, DataConfig
from fedsvd.config.compose import compose, hydra_settings
from fedsvd.config.data_keys import check_new_keys
from fedsvd.config.overrides import override_values
from fedsvd.config.search_path import search_paths
from fedsvd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedsvd.data.labeled import LabeledTexts
    from fedsvd.trained.run import TrainedRun

_ALLOWED_OVERRIDES = ("data", "seed", "train.eval_batch_size")
# Each of these names other data than the run's own.
_NAMES_DATA = ("data", "data.path", "data.test_path", "data.test_split", "data.subset")
# With the run's own data, any other key would move texts between the training set and the held-out set.
_ALLOWED_FOR_OWN_DATA = ("data.evaluate_on", "data.max_test_examples", "data.prompt_template", "train.eval_batch_size")
# Keys of the labels that the model was trained on, which are those of its outputs.
_MODEL_KEYS = ("label_range", "labels", "class_descriptions")
# Keys of the training set, which have no effect if all rows are scored.
_SPLIT_KEYS = ("max_train_examples", "test_fraction", "validation_fraction", "evaluate_on")
# What identifies an embedded dataset, or one on the hub.
_SOURCE_KEYS = ("name", "path", "subset", "min_abs_rating", "domains")
_COLUMN_KEYS = (
    "text_column", "text_pair_column", "label_column", "response_column", "messages_column", "separator",
    "label_separator",
)  # fmt: skip
# Options of the group that fit any dataset; the others have the columns of one.
_WITHOUT_COLUMNS = (*FILES, "hub")


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation scores.

    Attributes:
        config: The configuration whose ``data``, ``seed`` and ``train.eval_batch_size`` are used.
        own_data: Whether these are the held-out texts of the run's own data; otherwise all rows are scored.
        warnings: What the user should know about the choice.
    """

    config: Config
    own_data: bool
    warnings: tuple[str, ...] = ()


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that only data, seed and batch size are overridden.

    Raises:
        ConfigError: Another key is overridden.
    """
    for override, key in zip(overrides, _keys(overrides), strict=True):
        if key.partition(".")[0] not in _ALLOWED_OVERRIDES and key not in _ALLOWED_OVERRIDES:
            raise ConfigError(
                f"fedsvd evaluate does not accept {override}: the model is fixed by the run; only data, data.KEY, seed "
                "and train.eval_batch_size can be set."
            )


def plan_evaluation(
    folder: Path, own: Config, overrides: Sequence[str], *, every_split: bool = False
) -> EvaluationPlan:
    """Decide what is scored.

    If the overrides name data, only the columns and the prompt of the run's own ``data`` group remain; its files,
    limits and splits do not.

    Args:
        folder: The run directory.
        own: The configuration of the run.
        overrides: The overrides of the command line.
        every_split: Whether all splits of named data are scored.

    Raises:
        ConfigError: An override is invalid, belongs to the model, or would score texts that the model was trained on
            as held-out texts.
    """
    if not overrides:
        return EvaluationPlan(own, own_data=True)
    keys = _keys(overrides)
    if any(key in keys for key in _NAMES_DATA):
        named = _compose_named(own, overrides)
        is_own = named.data.name not in FILES and all(
            getattr(named.data, key) == getattr(own.data, key) for key in _SOURCE_KEYS
        )
        if not is_own or "data.test_split" in keys:
            plan = _plan_named(folder, own, named, overrides)
            return replace(plan, warnings=_warnings(own.data, plan.config.data, every_split))
        overrides = [item for item in overrides if _keys([item])[0] not in _NAMES_DATA]
    return EvaluationPlan(_compose_own(folder, own, overrides), own_data=True)


def load_labeled(plan: EvaluationPlan, run: TrainedRun, *, every_split: bool) -> LabeledTexts:
    """Load the texts of a plan for the evaluation of a run.

    Raises:
        ConfigError: ``every_split`` is set for the run's own data.
        DataError: The data cannot be loaded, have classes that the model does not know, or are the run's own and have
            changed; or the model's tokenizer has no chat template for conversations.
    """
    if plan.own_data and every_split:
        raise ConfigError(
            "--all is invalid for the run's own data, because the model was trained on most of it; choose other data "
            "with data=…."
        )
    from fedsvd.data.labeled import held_out_texts, load_all_texts
    from fedsvd.runtime.data import conversation_check, load_run_data

    data, seed, model = plan.config.data, plan.config.seed, run.config.model
    if plan.own_data:
        _check_unchanged(run)
        return held_out_texts(load_run_data(plan.config), data, run.classes, task=model.task)
    can_learn = conversation_check(data, model)
    return load_all_texts(data, seed, run.classes, every_split=every_split, can_learn=can_learn, task=model.task)


def _check_unchanged(run: TrainedRun) -> None:
    """Raise `DataError` if the run's own data no longer hold out the texts that its model was not trained on."""
    from fedsvd.data.readers import FILE_FORMATS
    from fedsvd.launch.resumed_data import held_out_change
    from fedsvd.runs.folder import read_json
    from fedsvd.runtime.description import describe_held_out

    record = read_json(run.folder.record) if run.folder.record.exists() else {}
    change = held_out_change(record, describe_held_out(run.config))
    if change:
        name = run.config.data.name if run.config.data.name in FILE_FORMATS else "csv"
        raise DataError(
            f"the held-out examples of {run.folder.root} have changed from {change[0]} to {change[1]}: its data are "
            "other than those that it started with, and what they hold out now may include texts that the model was "
            f"trained on. Restore the data, or name a file, as in data={name} data.path=…, all of whose rows are "
            "scored as they are."
        )


def _compose_own(folder: Path, own: Config, overrides: Sequence[str]) -> Config:
    from fedsvd.launch import saved_overrides

    for override, key in zip(overrides, _keys(overrides), strict=True):
        if (name := key.removeprefix("data.")) in _MODEL_KEYS:
            raise _belongs_to_model(override, getattr(own.data, name))
        trained_on = key == "data.evaluate_on" and own.data.evaluate_on == "test" and not override.endswith("=test")
        if key not in _ALLOWED_FOR_OWN_DATA or trained_on:
            raise ConfigError(
                f"{override} would score texts that the model was trained on: for the run's own data, only "
                f"{', '.join(_ALLOWED_FOR_OWN_DATA)} can be set (data.evaluate_on=test if the run held out a "
                "validation set). Leave it out, or name other data with data=… or data.path=…."
            )
    return compose([*saved_overrides(folder), *overrides])


def _compose_named(own: Config, overrides: Sequence[str]) -> Config:
    """Compose the overrides alone, with a model of the same task."""
    base = "model=tiny_llama" if own.model.task == "causal_lm" else "model=tiny"
    # No partition has an effect, and that of the defaults needs classes.
    model = [base, f"model.task={own.model.task}", "partition=iid"]
    option = [] if "data" in _keys(overrides) else [f"data={own.data.name}"]
    settings = [f"seed={own.seed}", f"train.eval_batch_size={own.train.eval_batch_size}"]
    config = compose([*model, *settings, *option, *overrides])
    check_new_keys(config, overrides)
    return config


def _plan_named(folder: Path, own: Config, named: Config, overrides: Sequence[str]) -> EvaluationPlan:
    keys = _keys(overrides)
    explicit = [key.removeprefix("data.") for key in keys if key.startswith("data.")]
    values: dict[str, Any] = {name: getattr(named.data, name) for name in explicit}
    for name in _MODEL_KEYS:
        if name in explicit and values[name] != (trained := getattr(own.data, name)):
            raise _belongs_to_model(f"data.{name} = {_shown(values[name])}", trained)
    useless = [name for name in _SPLIT_KEYS if values.get(name) not in (None, "test")]
    if useless:
        raise ConfigError(
            f"data.{useless[0]} = {values[useless[0]]} has no effect: all rows of the named data are scored. Leave it "
            "out; data.max_test_examples limits their number."
        )
    # Another dataset on the hub has its own splits, and other files have no test_path unless it is named too.
    others: dict[str, Any] = (
        {"test_path": None, "path": None} if named.data.name in FILES else {"test_split": named.data.test_split}
    )
    data = named.data if "data" in keys else replace(own.data, **others)
    data = replace(data, **{name: _default(name) for name in ("max_test_examples", *_SPLIT_KEYS)})
    carried: dict[str, Any] = {"prompt_template": own.data.prompt_template, "label_range": own.data.label_range}
    if "data" in keys and override_values(overrides)["data"] in _WITHOUT_COLUMNS:
        carried |= _own_columns(folder, own)
    data = replace(data, **{name: value for name, value in carried.items() if name not in explicit}, **values)
    _check_pairs(own.data, data)
    return EvaluationPlan(replace(named, data=data), own_data=False)


def _belongs_to_model(setting: str, trained: Any) -> ConfigError:
    return ConfigError(
        f"{setting} is not possible: it belongs to the model, which was trained with {_shown(trained)}. Leave it out."
    )


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _own_columns(folder: Path, own: Config) -> dict[str, Any]:
    """Return the run's columns, unless they come with its dataset."""
    columns = {name: getattr(own.data, name) for name in _COLUMN_KEYS}
    if own.data.name in FILES:
        return columns
    from fedsvd.launch import saved_overrides

    saved = saved_overrides(folder)
    option = hydra_settings(saved).hydra.runtime.choices.data
    of_dataset = hydra_settings([*search_paths(saved), f"data={option}"]).data
    return {name: value for name, value in columns.items() if value != of_dataset.get(name)}


def _check_pairs(own: DataConfig, data: DataConfig) -> None:
    if (data.text_pair_column is None) != (own.text_pair_column is None):
        expected, remedy = ("single texts", "null") if own.text_pair_column is None else ("pairs of texts", "…")
        raise ConfigError(
            f"data.text_pair_column = {data.text_pair_column} does not fit the run, whose model expects {expected}: "
            f"set data.text_pair_column={remedy}."
        )


def _warnings(own: DataConfig, data: DataConfig, every_split: bool) -> tuple[str, ...]:
    trained_on = training_texts(own, data, every_split=every_split)
    if not trained_on:
        return ()
    return (f"the model was trained on rows of {trained_on}: this is no estimate of its accuracy on other texts",)


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(DataConfig) if field.name == name)


def _keys(overrides: Sequence[str]) -> list[str]:
    return [item.partition("=")[0].lstrip("+") for item in overrides]
