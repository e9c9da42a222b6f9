"""The card that goes with an exported model: what it is, how to load it, how good it is, and what it promises."""

from __future__ import annotations

from typing import Any

from fedsvd import __version__
from fedsvd.report.privacy_statement import statement_markdown
from fedsvd.runs.folder import read_rows
from fedsvd.trained.run import TrainedRun

_PIPELINES = {"sequence_classification": "text-classification", "causal_lm": "text-generation"}
_AUTO = {"sequence_classification": "SequenceClassification", "causal_lm": "CausalLM"}


def model_card(run: TrainedRun, *, merged: bool) -> str:
    """Write the card as Markdown, with the header that model hubs read."""
    sections = [_header(run, merged), _what(run, merged), _loading(run, merged), _results(run), _training(run)]
    return "\n".join([*sections, statement_markdown(run.folder.root)])


def _header(run: TrainedRun, merged: bool) -> str:
    source = run.config.model.source
    tags = ["federated-learning", "lora", *(["differential-privacy"] if run.config.privacy.name != "none" else [])]
    lines = ["---", f"library_name: {'transformers' if merged else 'peft'}"]
    lines += [f"pipeline_tag: {_PIPELINES[run.config.model.task]}"]
    lines += [] if source.startswith("embedded:") else [f"base_model: {source}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _what(run: TrainedRun, merged: bool) -> str:
    config = run.config
    what = "The whole model, its LoRA update merged into the weights." if merged else "A LoRA adapter of PEFT."
    task = "Answers prompts" if run.answers else f"Classifies texts as {', '.join(run.classes)}"
    return (
        f"# {config.model.source.removeprefix('embedded:')}, fine-tuned by {config.method['name']}\n\n{what} {task}. "
        f"Trained by fedsvd {__version__} on data that stayed with {config.federation.num_clients} clients.\n"
    )


def _loading(run: TrainedRun, merged: bool) -> str:
    auto = _AUTO[run.config.model.task]
    if merged:
        code = f"from transformers import AutoModelFor{auto}, AutoTokenizer\n\n"
        code += f'model = AutoModelFor{auto}.from_pretrained("FOLDER")\n'
    else:
        labels = "" if run.answers else f", num_labels={len(run.classes)}"
        code = f"from peft import AutoPeftModelFor{auto}\nfrom transformers import AutoTokenizer\n\n"
        code += f'model = AutoPeftModelFor{auto}.from_pretrained("FOLDER"{labels})\n'
    more = ""
    if not merged and run.config.model.source.startswith("embedded:"):
        more = (
            "\nThe base model lies in a folder of the machine that trained (`base_model_name_or_path` in "
            "`adapter_config.json`). To carry the model elsewhere, export it merged.\n"
        )
    prompt = f"\nIt was trained on prompts of the form `{run.config.data.prompt_template!r}`.\n" if run.answers else ""
    return f'## Use\n\n```python\n{code}tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n{prompt}{more}'


def _results(run: TrainedRun) -> str:
    last = next((row for row in reversed(read_rows(run.folder.metrics)) if row["accuracy"] is not None), None)
    if last is None:
        return "## Results\n\nNo texts were held out, so that nothing was measured.\n"
    kind = "answers that are right token for token" if run.answers else "right classes"
    perplexity = f", perplexity {last['perplexity']:.2f}" if last.get("perplexity") is not None else ""
    return (
        f"## Results\n\nOn held-out texts, after round {last['server_round']}: {last['accuracy']:.1%} {kind}, loss "
        f"{last['loss']:.3f}{perplexity}.\n"
    )


def _training(run: TrainedRun) -> str:
    config = run.config
    rows: list[tuple[str, Any]] = [
        ("method", config.method["name"]),
        ("base model", config.model.source),
        ("rank, lora_alpha", f"{config.model.rank}, {config.model.lora_alpha:g}"),
        ("rounds, local steps", f"{config.train.num_rounds}, {config.train.local_steps}"),
        ("optimizer, learning rate", f"{config.train.optimizer}, {config.train.learning_rate:g}"),
        ("expected batch", config.train.batch_size),
        ("clients, of which in a round", f"{config.federation.num_clients}, {_in_a_round(run)}"),
        ("data, partition", f"{config.data.path or config.data.name}, {config.partition.name}"),
        ("seed", config.seed),
    ]
    return "## Training\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _in_a_round(run: TrainedRun) -> int:
    return run.config.federation.clients_per_round or run.config.federation.num_clients
