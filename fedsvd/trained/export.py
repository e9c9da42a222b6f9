"""A finished run's model for those who do not have fedsvd: a PEFT adapter, or a merged model, with a card."""

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
    """Write a folder that transformers (merged) or PEFT (an adapter) loads by itself, whole or not at all.

    Args:
        run: The run.
        to: A folder that is not there yet, or is empty.
        merge: Write the whole model, the adapter's update added to its weights, rather than the adapter.

    Raises:
        ConfigError: A folder with something in it.
        ModelError: The base model cannot be loaded.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to} is there already and not empty: name another folder; nothing is overwritten.")
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
    # Added up in float32, and rounded once.
    adapted = peft.PeftModel.from_pretrained(load_base(run, "float32"), str(run.folder.adapter))
    model: Any = adapted.merge_and_unload()
    model.to(loading.DTYPES[run.config.model.dtype])
    if not run.answers:
        model.config.id2label = dict(enumerate(run.classes))
        model.config.label2id = {name: number for number, name in enumerate(run.classes)}
    _restore(model.config, run.config.model.source)
    merged: PreTrainedModel = model
    return merged


def _restore(config: Any, source: str) -> None:
    """Undo what was set for training: whoever trains on may want the base's own dropout, and generating a cache."""
    with quiet_transformers():
        original = AutoConfig.from_pretrained(resolve_source(source))
    for key, value in vars(original).items():
        if "dropout" in key or key.endswith("_pdrop") or key == "use_cache":
            setattr(config, key, value)
