"""Export of a finished run as an adapter or a full model, with a model card, for use without fedsvd."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from fedsvd.config.task import TASKS
from fedsvd.errors import ConfigError, ModelError
from fedsvd.lora.pretrained import load_pretrained
from fedsvd.models import loading
from fedsvd.models.checkpoint_head import has_head, head_classes
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.models.label_range import rescale_head, rescale_state
from fedsvd.models.load_options import DTYPES
from fedsvd.runs.best_round import BEST_ROUND_FILE
from fedsvd.trained.model_card import model_card
from fedsvd.trained.pooled_export import export_pooled, prepare_config, refer_to_base, set_classes
from fedsvd.trained.run import TrainedRun, load_base
from fedsvd.trained.usage import BASE_FOLDER, CONFIG_FOLDER, Layout


def export_model(run: TrainedRun, to: Path, *, merge: bool) -> Layout:
    """Write a directory that transformers or sentence-transformers (full model) or PEFT (adapter) load without fedsvd.

    The directory appears atomically, once it is complete.

    Args:
        run: The run.
        to: The directory to write; it must be empty or not exist.
        merge: Write the full model, with the adapter's update merged into its weights, instead of the adapter.

    Returns:
        What was written.

    Raises:
        ConfigError: The directory is not empty.
        ModelError: The base model cannot be loaded, its adapter is of no use without fedsvd, or its head is
            of another package.
    """
    if run.config.model.head != "linear":
        raise ModelError(
            f"a run with model.head = {run.config.model.head} cannot be exported: no class of transformers has this "
            "head. Use fedsvd predict and fedsvd evaluate, where the package that adds it is installed."
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(
            f"--to {to} already exists and is not empty; nothing is overwritten. Choose another directory."
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    try:
        layout = _write_model(run, temporary, to, merge)
        _write_tokenizer(run, temporary)
        (temporary / "README.md").write_text(model_card(run, layout), encoding="utf-8")
        temporary.chmod(0o755)
        if to.exists():
            to.rmdir()
        temporary.rename(to)
        return layout
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_model(run: TrainedRun, folder: Path, target: Path, merge: bool) -> Layout:
    """Write the model to an empty directory that will be moved to ``target``, and return what was written."""
    if run.pooling is not None and not run.pooling.is_stock:
        return export_pooled(run, folder, merge=merge, target=target)
    if merge:
        with quiet_transformers():
            _merged(run).save_pretrained(folder)
        return "merged"
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BEST_ROUND_FILE))
    if run.config.data.label_range is not None:
        path = folder / "adapter_model.safetensors"
        state = rescale_state(load_file(path), load_base(run), run.config.data.label_range)
        save_file(state, path, metadata={"format": "pt"})
    return "adapter" if run.generates_text else _write_classes(run, folder, target)


def _write_tokenizer(run: TrainedRun, folder: Path) -> None:
    """Write the tokenizer; that of a classifier truncates texts as its run did, where the caller asks for it."""
    tokenizer = loading.load_tokenizer(run.config.model.source)
    if not run.generates_text:
        tokenizer.model_max_length = run.config.model.max_length
    tokenizer.save_pretrained(folder)


def _write_classes(run: TrainedRun, folder: Path, target: Path) -> Layout:
    """Write the names of the classes for an adapter, in the configuration of its base model.

    It is in a subdirectory: next to the adapter, transformers would take it for that of a full model. A base model with
    a head of its own, whose classes differ in names, order or number, would be loaded with that head and those names,
    so it is written without them.
    """
    with quiet_transformers():
        config = AutoConfig.from_pretrained(resolve_source(run.config.model.source))
        if not has_head(config) or head_classes(config, TASKS[run.config.model.task].auto_class) == run.classes:
            set_classes(config, run.classes, run.config.model.task)
            config.save_pretrained(folder / CONFIG_FOLDER)
            return "adapter"
        base = load_base(run, run.config.model.dtype)
        prepare_config(base.config, run)
        base.save_pretrained(folder / BASE_FOLDER)
    refer_to_base(folder, target)
    return "adapter_and_base"


def _merged(run: TrainedRun) -> PreTrainedModel:
    # Merge in float32, so that the weights are rounded only once; into the weights that a quantized base computes with.
    adapted = load_pretrained(load_base(run, "float32"), run.adapter)
    model: Any = adapted.merge_and_unload()
    rescale_head(model, run.config.data.label_range)
    model.to(DTYPES[run.config.model.dtype])
    prepare_config(model.config, run)
    merged: PreTrainedModel = model
    return merged
