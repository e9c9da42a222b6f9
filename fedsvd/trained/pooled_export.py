"""Export of a run on pooled features, as a stock classifier or as a sentence-transformers model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from fedsvd.config.task import TASKS
from fedsvd.errors import ModelError
from fedsvd.lora.pretrained import load_pretrained
from fedsvd.lora.site import PEFT_PREFIX
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.models.label_range import rescale_head, rescale_state
from fedsvd.models.loading import is_dropout, load_tokenizer
from fedsvd.models.pooled import PooledClassifier
from fedsvd.trained.run import TrainedRun, load_base
from fedsvd.trained.sentence_export import save_sentence_transformer
from fedsvd.trained.stock_export import adapter_state, to_stock
from fedsvd.trained.usage import BASE_FOLDER, Layout

ADAPTER_CONFIG = "adapter_config.json"


def export_pooled(run: TrainedRun, folder: Path, *, merge: bool, target: Path) -> Layout:
    """Write the model without tokenizer and model card.

    Full models are float32, whatever ``model.dtype`` is: bfloat16 is too coarse for the standardization.

    Args:
        run: The run.
        folder: An existing empty directory.
        merge: Write the full model instead of the adapter and its base model.
        target: Where the directory will be moved to.

    Returns:
        What was written.

    Raises:
        ModelError: The base model cannot be loaded, or an adapter was requested and no stock class fits.
    """
    base: Any = load_base(run, "float32")
    with quiet_transformers():
        if not merge:
            return _export_adapter(run, base, folder, target)
        merged: Any = load_pretrained(base, run.adapter).merge_and_unload()
        rescale_head(merged, run.config.data.label_range)
        stock = to_stock(merged, load_tokenizer(run.config.model.source))
        if stock is not None:
            prepare_config(stock.config, run)
            stock.save_pretrained(folder)
            return "merged"
        prepare_config(merged.backbone.config, run)
        save_sentence_transformer(merged, folder, run.config.model.max_length)
        return "sentence"


def prepare_config(config: Any, run: TrainedRun) -> None:
    """Write the classes into a model's configuration, and restore what training had changed: dropout, ``use_cache``."""
    if not run.generates_text:
        set_classes(config, run.classes, run.config.model.task)
    with quiet_transformers():
        original = AutoConfig.from_pretrained(resolve_source(run.config.model.source))
    for key, value in vars(original).items():
        if is_dropout(key) or key == "use_cache":
            setattr(config, key, value)


def set_classes(config: Any, classes: Sequence[str], task: str) -> None:
    """Write the classes and the kind of their problem into a model's configuration."""
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    problem_type = TASKS[task].problem_type
    if problem_type is not None or getattr(config, "problem_type", None) is not None:
        config.problem_type = problem_type or "single_label_classification"


def _export_adapter(run: TrainedRun, base: PooledClassifier, folder: Path, target: Path) -> Layout:
    """Write the adapter, renamed for the stock class, and its base model in the subdirectory ``base``."""
    stock = to_stock(base, load_tokenizer(run.config.model.source))
    if stock is None:
        raise ModelError(
            f"the adapter of a run on pooled features of {run.config.model.source} ({run.pooling}) cannot be exported: "
            "transformers has no class with these features that it would fit. Export the full model with --merge."
        )
    prepare_config(stock.config, run)
    stock.save_pretrained(folder / BASE_FOLDER)
    trained = load_file(run.adapter / "adapter_model.safetensors")
    state = adapter_state(rescale_state(trained, base, run.config.data.label_range), base, stock)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copy(run.adapter / ADAPTER_CONFIG, folder)
    sites = sorted({name.partition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in state if ".lora_" in name})
    # Full names: the layer that pools has modules with the same endings.
    names = {"target_modules": sites, "layers_to_transform": None, "exclude_modules": None}
    refer_to_base(folder, target, **names, modules_to_save=["classifier"])
    return "adapter_and_base"


def refer_to_base(folder: Path, target: Path, **settings: Any) -> None:
    """Let an adapter refer to the base model in its subdirectory.

    Args:
        folder: The directory of the adapter.
        target: Where the directory will be moved to.
        settings: Further changes of the adapter's configuration.
    """
    path = folder / ADAPTER_CONFIG
    settings = {**json.loads(path.read_text(encoding="utf-8")), **settings}
    settings["base_model_name_or_path"] = str(target.resolve() / BASE_FOLDER)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
