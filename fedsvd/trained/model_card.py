"""The model card of an exported model: description, usage, results, training settings and privacy statement."""

from __future__ import annotations

from typing import Any

from fedsvd import __version__
from fedsvd.report.privacy_statement import statement_markdown
from fedsvd.runs.folder import read_rows
from fedsvd.trained.run import TrainedRun

_PIPELINES = {"sequence_classification": "text-classification", "causal_lm": "text-generation"}
_AUTO = {"sequence_classification": "SequenceClassification", "causal_lm": "CausalLM"}


def model_card(run: TrainedRun, *, merged: bool) -> str:
    """Return the model card as Markdown, with the YAML header that model hubs read."""
    sections = [_header(run, merged), _description(run, merged), _usage(run, merged), _results(run), _training(run)]
    return "\n".join([*sections, statement_markdown(run.folder.root)])


def _header(run: TrainedRun, merged: bool) -> str:
    source = run.config.model.source
    tags = ["federated-learning", "lora", *(["differential-privacy"] if run.config.privacy.name != "none" else [])]
    lines = ["---", f"library_name: {'transformers' if merged else 'peft'}"]
    lines += [f"pipeline_tag: {_PIPELINES[run.config.model.task]}"]
    lines += [] if source.startswith("embedded:") else [f"base_model: {source}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _description(run: TrainedRun, merged: bool) -> str:
    config = run.config
    kind = "A full model, with its LoRA update merged into the weights." if merged else "A LoRA adapter for PEFT."
    task = "It answers prompts." if run.generates_text else f"It classifies texts as one of: {', '.join(run.classes)}."
    return (
        f"# {config.model.source.removeprefix('embedded:')}, fine-tuned with {config.method['name']}\n\n{kind} {task} "
        f"It was trained with fedsvd {__version__}, by federated learning over {config.federation.num_clients} clients "
        "whose data stayed with them.\n"
    )


def _usage(run: TrainedRun, merged: bool) -> str:
    auto = _AUTO[run.config.model.task]
    if merged:
        code = f"from transformers import AutoModelFor{auto}, AutoTokenizer\n\n"
        code += f'model = AutoModelFor{auto}.from_pretrained("FOLDER")\n'
    else:
        labels = "" if run.generates_text else f", num_labels={len(run.classes)}"
        code = f"from peft import AutoPeftModelFor{auto}\nfrom transformers import AutoTokenizer\n\n"
        code += f'model = AutoPeftModelFor{auto}.from_pretrained("FOLDER"{labels})\n'
    base_note = ""
    if not merged and run.config.model.source.startswith("embedded:"):
        base_note = (
            "\nThe base model is in a directory of the machine on which the adapter was trained "
            "(`base_model_name_or_path` in `adapter_config.json`). To use the model on another machine, export it with "
            "`--merge`.\n"
        )
    template = run.config.data.prompt_template
    prompt = f"\nThe model was trained on prompts of the form `{template!r}`.\n" if run.generates_text else ""
    code += 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
    return f"## Usage\n\n```python\n{code}```\n\nReplace `FOLDER` with the path of this directory.\n{prompt}{base_note}"


def _results(run: TrainedRun) -> str:
    last = next((row for row in reversed(read_rows(run.folder.metrics)) if row["accuracy"] is not None), None)
    if last is None:
        return "## Results\n\nThe run had no held-out set, so the model was not evaluated.\n"
    metric = "exact match (answers correct token for token)" if run.generates_text else "accuracy"
    perplexity = f", perplexity {last['perplexity']:.2f}" if last.get("perplexity") is not None else ""
    return (
        f"## Results\n\nOn the held-out set after round {last['server_round']}: {metric} {last['accuracy']:.1%}, "
        f"loss {last['loss']:.3f}{perplexity}.\n"
    )


def _training(run: TrainedRun) -> str:
    config = run.config
    rows: list[tuple[str, Any]] = [
        ("method", config.method["name"]),
        ("base model", config.model.source),
        ("rank, lora_alpha", f"{config.model.rank}, {config.model.lora_alpha:g}"),
        ("rounds, local steps", f"{config.train.num_rounds}, {config.train.local_steps}"),
        ("optimizer, learning rate", f"{config.train.optimizer}, {config.train.learning_rate:g}"),
        ("expected batch size", config.train.batch_size),
        ("clients, clients per round", f"{config.federation.num_clients}, {_clients_per_round(run)}"),
        ("data set, partition", f"{config.data.path or config.data.name}, {config.partition.name}"),
        ("seed", config.seed),
    ]
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"## Training\n\n| setting | value |\n|---|---|\n{table}"


def _clients_per_round(run: TrainedRun) -> int:
    return run.config.federation.clients_per_round or run.config.federation.num_clients
