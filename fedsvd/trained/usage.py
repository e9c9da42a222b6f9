"""How an exported model is loaded without fedsvd: a section of its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from fedsvd.config.task import TASKS
from fedsvd.report.literal import code_span
from fedsvd.trained.outputs import OUTPUTS
from fedsvd.trained.run import TrainedRun

# What an export holds: a full model for transformers, one for sentence-transformers, an adapter of a base model that is
# available elsewhere, or an adapter with its base model in the subdirectory "base".
Layout = Literal["merged", "sentence", "adapter", "adapter_and_base"]
# The subdirectory of an adapter's directory with the configuration of its base model, which names the classes.
CONFIG_FOLDER = "config"
# The subdirectory with an adapter's base model.
BASE_FOLDER = "base"
# How the base model of an adapter is quantized as in the run, by ``model.quantization``.
_QUANTIZATION = {
    "nf4": """quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="{dtype}",{heads}
)
""",
    "int8": """quantization = BitsAndBytesConfig(
    load_in_8bit=True,
    llm_int8_threshold=0.0,{heads}
)
""",
}
_SENTENCE_USAGE = """## Usage

```python
from sentence_transformers import SentenceTransformer

classes = {classes!r}
model = SentenceTransformer("FOLDER")
logits = model.encode([{example}], convert_to_tensor=True)
{result}
```

Replace `FOLDER` with the path of this directory.
"""


def usage(run: TrainedRun, layout: Layout) -> str:
    """Return the section on how to load an export."""
    auto = TASKS[run.config.model.task].auto_class
    setup, extra = _quantization(run), ""
    # The type of the checkpoint may be another one than that of the run.
    argument = f', dtype="{run.config.model.dtype}"'
    if setup:
        argument, extra = f"{argument}, quantization_config=quantization", ", BitsAndBytesConfig"
    if layout == "sentence":
        return _sentence_usage(run)
    if layout == "merged":
        code = f"from transformers import AutoModelFor{auto}, AutoTokenizer\n\n"
        code += f'model = AutoModelFor{auto}.from_pretrained("FOLDER")\n'
    elif layout == "adapter_and_base":
        code = f"from peft import PeftModel\nfrom transformers import AutoModelFor{auto}, AutoTokenizer\n\n"
        code += f'base = AutoModelFor{auto}.from_pretrained("FOLDER/base")\n'
        code += 'model = PeftModel.from_pretrained(base, "FOLDER")\n'
    elif run.generates_text:
        code = f"from peft import AutoPeftModelFor{auto}\nfrom transformers import AutoTokenizer{extra}\n\n{setup}"
        code += f'model = AutoPeftModelFor{auto}.from_pretrained("FOLDER"{argument})\n'
    else:
        code = f"from transformers import AutoConfig, AutoModelFor{auto}, AutoTokenizer{extra}\n\n{setup}"
        code += f'config = AutoConfig.from_pretrained("FOLDER/{CONFIG_FOLDER}")  # names the classes\n'
        code += (
            f'model = AutoModelFor{auto}.from_pretrained("FOLDER", config=config{argument})  # with PEFT installed\n'
        )
    notes = "".join(f"\n{note}\n" for note in (_precision_note(run, layout), base_note(run, layout)) if note)
    prompt = f"\nThe model was trained on {_inputs(run)}.\n" if run.generates_text else ""
    code += 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
    code += "" if run.generates_text else _outputs(run)
    return f"## Usage\n\n```python\n{code}```\n\nReplace `FOLDER` with the path of this directory.\n{prompt}{notes}"


def _sentence_usage(run: TrainedRun) -> str:
    example = '"A text."' if run.config.data.text_pair_column is None else '("A text.", "Its pair.")'
    result = OUTPUTS[run.config.model.task].usage
    return _SENTENCE_USAGE.format(classes=list(run.classes), example=example, result=result)


def _quantization(run: TrainedRun) -> str:
    """Return the code that defines the quantization of an adapter's base model; the trained head is not quantized."""
    adapter: Any = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    heads = sorted(set(adapter.get("modules_to_save") or ()))
    kept = f"\n    llm_int8_skip_modules={json.dumps(heads)}," if heads else ""
    return _QUANTIZATION.get(run.config.model.quantization, "").format(dtype=run.config.model.dtype, heads=kept)


def _outputs(run: TrainedRun) -> str:
    """Return the code that computes the logits of a text, and prints what they predict."""
    result = OUTPUTS[run.config.model.task].usage
    code = f"\nclasses = {list(run.classes)!r}\n" if "classes" in result else "\n"
    inputs, texts = '["A text."]', "texts"
    if run.config.data.text_pair_column is not None:
        inputs, texts = '["A text."], ["Its pair."]', "pairs"
    code += f"# Longer {texts} are truncated to {run.config.model.max_length} tokens, as in training.\n"
    code += f'inputs = tokenizer({inputs}, truncation=True, padding=True, return_tensors="pt")\n'
    code += "logits = model(**inputs).logits\n"
    return code + (f"{result}\n" if result else "")


def _inputs(run: TrainedRun) -> str:
    """Describe what a language model was trained on."""
    form = f"prompts of the form {code_span(repr(run.config.data.prompt_template))}"
    chat = "the chat template of its tokenizer"
    return {
        "answers": f"{form} in {chat}" if run.config.model.chat_template else form,
        "messages": f"conversations in {chat}, on the assistant's turns alone",
        "plain_text": "every token of plain texts",
    }[run.config.data.row_format]


def _precision_note(run: TrainedRun, layout: Layout) -> str:
    """Return what an export in bfloat16 rounds that its run did not round; empty if there is nothing."""
    is_pooled = run.pooling is not None and not run.pooling.is_stock
    # PEFT loads factors as float32, in the layouts whose code calls it; transformers rounds them.
    loads_factors = layout == "adapter_and_base" or (run.generates_text and layout == "adapter")
    parts = [*([] if loads_factors else ["the LoRA update"]), *([] if run.generates_text else ["the head"])]
    if run.config.model.dtype == "float32" or is_pooled or not parts:
        return ""
    return (
        f"Loaded like this, {' and '.join(parts)} {'are' if len(parts) > 1 else 'is'} rounded to bfloat16, which has "
        "about three digits. The run computed with float32 there, so its predictions and the results below can differ "
        "slightly from those of this model."
    )


def base_note(run: TrainedRun, layout: Layout) -> str:
    """Return what to set where an adapter's base model is not found; empty if others can load it by its hub id."""
    source = run.config.model.source
    if layout != "adapter" or not is_local(source):
        return ""
    return (
        f"The base model {base_name(source)} is in a directory of the machine on which the adapter was trained. To "
        "use the adapter on another machine, copy that directory there and set `base_model_name_or_path` in "
        "`adapter_config.json` to its path, or export the full model with `--merge`."
    )


def is_local(source: str) -> bool:
    """Return whether a base model is embedded, or in a directory of this machine."""
    return source.startswith("embedded:") or Path(source).is_absolute() or Path(source).is_dir()


def base_name(source: str) -> str:
    """Return the name of a base model without the directories of this machine."""
    return Path(source).name if is_local(source) and ":" not in source else source.removeprefix("embedded:")
