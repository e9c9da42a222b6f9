"""Export of a finished run as a PEFT adapter or a merged model, with a model card, for use without fedsvd."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import peft
from transformers import AutoConfig, PreTrainedModel

from fedsvd.errors import ConfigError
from fedsvd.models import loading
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.trained.model_card import model_card
from fedsvd.trained.run import TrainedRun, load_base


def export_model(run: TrainedRun, to: Path, *, merge: bool) -> None:
    """Write a directory that transformers (merged model) or PEFT (adapter) can load without fedsvd.

    The directory appears atomically, once it is complete.

    Args:
        run: The run.
        to: The directory to write; it must be empty or not exist.
        merge: Write the full model, with the adapter's update merged into its weights, instead of the adapter.

    Raises:
        ConfigError: The directory is not empty.
        ModelError: The base model cannot be loaded.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(
            f"--to {to} already exists and is not empty; nothing is overwritten. Choose another directory."
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    try:
        if merge:
            with quiet_transformers():
                _merged(run).save_pretrained(temporary)
        else:
            shutil.copytree(run.folder.adapter, temporary, dirs_exist_ok=True)
        loading.load_tokenizer(run.config.model.source).save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card(run, merged=merge), encoding="utf-8")
        temporary.chmod(0o755)
        if to.exists():
            to.rmdir()
        temporary.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _merged(run: TrainedRun) -> PreTrainedModel:
    # Merge in float32, so that the weights are rounded only once.
    adapted = peft.PeftModel.from_pretrained(load_base(run, "float32"), str(run.folder.adapter))
    model: Any = adapted.merge_and_unload()
    model.to(loading.DTYPES[run.config.model.dtype])
    if not run.generates_text:
        model.config.id2label = dict(enumerate(run.classes))
        model.config.label2id = {name: number for number, name in enumerate(run.classes)}
    _restore_config(model.config, run.config.model.source)
    merged: PreTrainedModel = model
    return merged


def _restore_config(config: Any, source: str) -> None:
    """Restore the base model's dropout and ``use_cache`` settings, which training had changed."""
    with quiet_transformers():
        original = AutoConfig.from_pretrained(resolve_source(source))
    for key, value in vars(original).items():
        if "dropout" in key or key.endswith("_pdrop") or key == "use_cache":
            setattr(config, key, value)
