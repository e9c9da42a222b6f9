"""The model card of an exported model: description, usage, results, training settings and privacy statement."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fedsvd import __version__
from fedsvd.config.compose import as_dict
from fedsvd.config.flat import flatten
from fedsvd.config.task import TASKS
from fedsvd.report.labels import clients_label, method_label, trains_factors
from fedsvd.report.literal import code_span, markdown_text
from fedsvd.report.loaded_runs import read_run as report_run
from fedsvd.report.privacy_statement import statement_markdown
from fedsvd.runs.folder import read_json, read_rows
from fedsvd.trained.outputs import OUTPUTS
from fedsvd.trained.run import TrainedRun
from fedsvd.trained.usage import Layout, base_name, is_local, usage

_LIBRARIES = {"merged": "transformers", "sentence": "sentence-transformers"}
_HEAD_KINDS = {
    "merged": "A full model: the frozen base model with a classification head.",
    "sentence": "A full model for sentence-transformers: the frozen base model with a classification head; `encode` "
    "returns the logits of the classes.",
    "adapter": "A classification head, stored as an adapter for PEFT whose LoRA update is zero.",
    "adapter_and_base": "A classification head, stored as an adapter for PEFT whose LoRA update is zero, with its base "
    "model in the directory `base`.",
}
_KINDS = {
    "merged": "A full model, with its LoRA update merged into the weights.",
    "sentence": "A full model for sentence-transformers, with its LoRA update merged into the weights; `encode` "
    "returns the logits of the classes.",
    "adapter": "A LoRA adapter for PEFT.",
    "adapter_and_base": "A LoRA adapter for PEFT, with its base model in the directory `base`.",
}


def model_card(run: TrainedRun, layout: Layout) -> str:
    """Return the model card as Markdown, with the YAML header that model hubs read."""
    sections = [_header(run, layout), _description(run, layout), usage(run, layout), _results(run), _training(run)]
    return "\n".join([*sections, statement_markdown(run.folder.root)])


def _header(run: TrainedRun, layout: Layout) -> str:
    source = run.config.model.source
    is_proven = report_run(run.folder.root, run.folder.root).claim.status == "private"
    tags = ["federated-learning", *(["lora"] if _trains_factors(run) else [])]
    tags += ["differential-privacy"] if is_proven else []
    lines = ["---", f"library_name: {_LIBRARIES.get(layout, 'peft')}"]
    lines += [f"pipeline_tag: {TASKS[run.config.model.task].pipeline}"]
    lines += [] if is_local(source) else [f"base_model: {_yaml_string(source)}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _yaml_string(text: str) -> str:
    """Quote a string in YAML unless it is a plain name."""
    return text if re.fullmatch(r"[A-Za-z][\w./-]*", text) else json.dumps(text)


def _description(run: TrainedRun, layout: Layout) -> str:
    config = run.config
    if run.generates_text:
        task = "It continues texts." if run.config.data.row_format == "plain_text" else "It answers prompts."
    else:
        unit = "text" if config.data.text_pair_column is None else "pair of texts"
        task = OUTPUTS[config.model.task].description(unit, run.classes)
        if config.data.text_pair_column is not None:
            task += (
                f" First comes {code_span(config.data.text_column)}, then {code_span(config.data.text_pair_column)}."
            )
    name, label = markdown_text(base_name(config.model.source)), _label(run)
    title = (
        f"{name}, fine-tuned with {label}" if _trains_factors(run) else f"{name} with a classification head ({label})"
    )
    kind = (_KINDS if _trains_factors(run) else _HEAD_KINDS)[layout]
    origin = (
        f"It was trained with fedsvd {__version__}, by federated learning over "
        f"{clients_label(flatten(as_dict(config)))}; their data stayed where they were."
    )
    if config.train.trains == "none":
        origin = f"It was not trained: fedsvd {__version__} initialized its head without any client's data."
    return f"# {title}\n\n{kind} {task} {origin}\n{_pooling(run)}"


def _pooling(run: TrainedRun) -> str:
    pooling = read_json(run.folder.record).get("pooling") if run.folder.record.exists() else None
    if not pooling:
        return ""
    summary, corpus = pooling["summary"], pooling["public_text"]
    if not corpus:
        return f"\nThe classifier reads: {summary}.\n"
    # Others need no path of this machine; the fingerprint tells which file it was.
    summary = summary.replace(corpus["name"], Path(corpus["name"]).name)
    return f"\nThe classifier reads: {summary}. The SHA-256 of the public texts is `{corpus['sha256']}`.\n"


def _data_name(run: TrainedRun) -> str:
    data = run.config.data
    if data.path is None:
        return data.name
    return data.path if data.name == "hub" else Path(data.path).name


def _results(run: TrainedRun) -> str:
    rows = [row for row in read_rows(run.folder.metrics) if row["loss"] is not None]
    if run.best:
        rows = [row for row in rows if row["server_round"] <= run.best.server_round]
    last = rows[-1] if rows else None
    if last is None:
        return "## Results\n\nThe run had no held-out set, so the model was not evaluated.\n"
    metrics = TASKS[run.config.task].metrics
    values = [f"{item.label} {item.format(last[item.key])}" for item in metrics if last.get(item.key) is not None]
    note = " (answers correct token for token)" if run.config.task == "causal_lm" else ""
    note_on_best = f"\nThis is the model of {run.best}\n" if run.best else ""
    perplexity = f", perplexity {last['perplexity']:.2f}" if last.get("perplexity") is not None else ""
    return (
        f"## Results\n\nOn the held-out set after round {last['server_round']}: {', '.join(values)}{note}, loss "
        f"{last['loss']:.3f}{perplexity}.\n{note_on_best}"
    )


def _training(run: TrainedRun) -> str:
    config = run.config
    rows: list[tuple[str, Any]] = [
        ("method", _label(run)),
        ("base model", base_name(config.model.source)),
        *([("quantization", config.model.quantization)] if config.model.quantization != "none" else []),
        *(_rank(run) if _trains_factors(run) else []),
        ("rounds, local steps", f"{config.train.rounds}, {config.train.local_steps}"),
        *_class_weights(run),
        ("optimizer, learning rate", f"{config.train.optimizer}, {config.train.learning_rate:g}"),
        _sampling(run),
        ("clients, clients per round", f"{config.federation.num_participants}, {config.federation.num_sampled}"),
        ("data set, partition", f"{_data_name(run)}, {config.partition.name}"),
        ("seed", config.seed),
    ]
    table = "".join(f"| {name} | {markdown_text(value)} |\n" for name, value in rows)
    return f"## Training\n\n| setting | value |\n|---|---|\n{table}"


def _rank(run: TrainedRun) -> list[tuple[str, Any]]:
    return [("rank, lora_alpha", f"{run.config.model.rank}, {run.config.model.lora_alpha:g}")]


def _class_weights(run: TrainedRun) -> list[tuple[str, Any]]:
    recorded = read_json(run.folder.record).get("class_weights")
    if not recorded:
        return []
    values = ", ".join(f"{name} {weight:.3g}" for name, weight in recorded["weights"].items())
    return [("class weights", f"{values} (from {recorded['source']})")]


def _sampling(run: TrainedRun) -> tuple[str, Any]:
    rate = run.config.train.sample_rate
    return ("expected batch size", run.config.train.batch_size) if rate is None else ("sample rate", f"{rate:g}")


def _label(run: TrainedRun) -> str:
    return method_label(flatten(as_dict(run.config)))


def _trains_factors(run: TrainedRun) -> bool:
    return trains_factors(flatten(as_dict(run.config)))
