"""Runs from Python: `train` and `load_run`, the counterparts of ``fedsvd train`` and of its run directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd.commands.arguments import normalize
from fedsvd.commands.run_directory import prepare_run, started
from fedsvd.config.compose import compose
from fedsvd.config.paths import override_key
from fedsvd.config.quoting import path_override
from fedsvd.config.search_path import is_search_path
from fedsvd.errors import ConfigError
from fedsvd.runs.folder import RunFolder, read_json, read_rows
from fedsvd.runs.storage import storage_errors

if TYPE_CHECKING:
    from torch import Tensor

    from fedsvd.trained.run import TrainedModel


@dataclass(frozen=True)
class Run:
    """A finished run, as `train` and `load_run` return it; a notebook shows its report.

    Attributes:
        folder: The run directory.
        metrics: One row per round, from round 0, the model before training: ``server_round``, ``accuracy``, ``loss``,
            ``epsilon`` and what else ``metrics.jsonl`` holds. ``accuracy`` and ``loss`` are None in rounds that were
            not evaluated (``train.eval_every``).
        privacy: What ``privacy.json`` holds: the guarantee, and by client the charges and ε. Empty without privacy.

    Example:
        >>> import fedsvd
        >>> run = fedsvd.load_run("runs/first")
        >>> row = run.metrics[-1]
        >>> row["server_round"], 0 <= row["accuracy"] <= 1, row["epsilon"] <= 6
        (2, True, True)
        >>> evaluated = [row for row in run.metrics if row["accuracy"] is not None]
        >>> max(row["accuracy"] for row in evaluated) >= row["accuracy"]
        True
        >>> sorted({key.split(".")[-2] for key in run.adapter})
        ['classifier', 'lora_A', 'lora_B']
        >>> list(run.predict(["a fine film"])[0])
        ['text', 'label', 'probability', 'probabilities']
        >>> run.privacy_statement().splitlines()[0]
        '## Privacy statement'
        >>> sorted(path.name for path in run.export("exported").iterdir() if path.suffix == ".safetensors")
        ['adapter_model.safetensors']
    """

    folder: Path
    metrics: Sequence[Mapping[str, Any]] = field(repr=False)
    privacy: Mapping[str, Any] = field(repr=False)

    @cached_property
    def adapter(self) -> dict[str, Tensor]:
        """The final adapter as a PEFT state dict, for `peft.set_peft_model_state_dict`.

        Raises:
            RunError: The run has no single model, or a file is damaged.
        """
        from safetensors.torch import load_file

        from fedsvd.trained.run import read_run

        return load_file(read_run(self.folder).folder.adapter / "adapter_model.safetensors")

    def predict(
        self,
        texts: Sequence[str] | Sequence[Sequence[dict[str, str]]] | Sequence[Sequence[str]],
        pairs: Sequence[str] | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return for each text its class and the probabilities of all classes, or the generated answer.

        Args:
            texts: A list of texts; for a model trained on conversations, also lists of turns with ``role`` and
                ``content``; for token classification, also lists of words.
            pairs: The second text of each pair, for a model trained on text pairs: as many as texts.
            max_new_tokens: For a language model: the largest number of tokens of an answer (None: 48); ``is_complete``
                of a row says whether the model ended its answer before.

        Raises:
            ConfigError: An argument is not a list of texts, such as a single text, or the model expects pairs and there
                are none, or the other way round, or their numbers differ, or ``max_new_tokens`` is below 1
                or given for a model that generates no text.
            DataError: A conversation or a word is invalid.
            ModelError: The base model cannot be loaded.
            RunError: The run directory is damaged.
        """
        from fedsvd.trained.prediction import predict

        return list(predict(self._model, texts, pairs, max_new_tokens=max_new_tokens))

    def privacy_statement(self) -> str:
        """Return the privacy statement of the report in Markdown: guarantee, assumptions, and what left each client.

        Raises:
            ConfigError: The configuration in the run directory cannot be read.
            RunError: The run directory is damaged.
        """
        from fedsvd.report.privacy_statement import statement_markdown

        return statement_markdown(self.folder)

    def export(self, to: str | Path, *, merge: bool = False) -> Path:
        """Write the model with its tokenizer and model card for use without fedsvd, as ``fedsvd export`` does.

        Args:
            to: The directory to write; it must be empty or not exist.
            merge: Write the full model, with the adapter merged into its weights, instead of the adapter.

        Returns:
            The directory.

        Raises:
            ConfigError: The directory is not empty.
            ModelError: The base model cannot be loaded.
            RunError: The run directory is damaged.
        """
        from fedsvd.trained.export import export_model
        from fedsvd.trained.run import read_run

        with storage_errors(Path(to)):
            export_model(read_run(self.folder), Path(to), merge=merge)
        return Path(to)

    def _repr_html_(self) -> str:
        """Render the report in a notebook; the parts that follow the accuracy are folded."""
        from fedsvd.report.document import to_notebook_html
        from fedsvd.report.loaded_runs import read_run
        from fedsvd.report.run_sections import run_sections

        sections = run_sections(read_run(self.folder, self.folder))
        # What was found comes before what was set.
        sections.append(sections.pop(1))
        return to_notebook_html(sections, num_open=2)

    @cached_property
    def _model(self) -> TrainedModel:
        from fedsvd.trained.run import load_trained_model, read_run

        return load_trained_model(read_run(self.folder))


def train(*overrides: str, run_dir: str | Path | None = None, progress: bool = False) -> Run:
    """Run a federation, as ``fedsvd train`` does with the same overrides.

    Args:
        overrides: What follows ``fedsvd train`` on the command line, one argument each, such as ``"method=ffa_lora"``
            or ``"resume=runs/first"``. Sweeps (``-m``) are for the command line only.
        run_dir: The run directory; by default it is named after the time, below ``runs/`` in the working directory. A
            resumed run stays in its own.
        progress: Show what the command prints, in a notebook with live bars if ipywidgets is installed (the extra
            ``notebook``). By default it goes to ``output.log`` in the run directory.

    Returns:
        The finished run.

    Raises:
        ConfigError: A key, type or value is invalid, or ``run_dir`` is not the directory of the run to resume; raised
            before anything is loaded.
        RunError: The run failed.
        FedSVDError: Another expected error, such as data that cannot be read.

    Example:
        >>> import fedsvd
        >>> run = fedsvd.train("experiment=smoke", "method=fedsvd", run_dir="runs/first")
        >>> [row["server_round"] for row in run.metrics]
        [0, 1, 2]
    """
    for word in overrides:
        if word.startswith("-") or "=" not in word:
            raise ConfigError(
                f"overrides = {word!r} is invalid: expected KEY=VALUE, one argument per override. Options of the "
                "command line, such as -m for sweeps, are not available from Python."
            )
    chosen = [] if run_dir is None else [path_override("run_dir", Path(run_dir).absolute())]
    prepared = prepare_run(normalize([*overrides, *chosen]))
    folder = RunFolder(prepared.folder)
    arguments = [
        word for word in prepared.arguments if is_search_path(word) or not override_key(word).startswith("hydra.")
    ]
    with started(folder), storage_errors(folder.root), _output(folder.root / "output.log", progress):
        from fedsvd import launch

        launch.run(compose(arguments), arguments, folder.root)
    return _run(folder)


def load_run(folder: str | Path) -> Run:
    """Load a finished run from its directory.

    Args:
        folder: The run directory, of `train`, ``fedsvd train`` or a sweep's run.

    Raises:
        ConfigError: It is not a run directory.
        RunError: The run has no final adapter, or a file is damaged.

    Example:
        >>> import fedsvd
        >>> fedsvd.load_run("runs/first").privacy["clients"]["0"]["epsilon"] <= 6
        True
    """
    from fedsvd.trained.run import read_finished

    return _run(read_finished(Path(folder))[0])


def _run(folder: RunFolder) -> Run:
    return Run(folder.root, tuple(read_rows(folder.metrics)), read_json(folder.privacy))


@contextlib.contextmanager
def _output(path: Path, progress: bool) -> Iterator[None]:
    if progress:
        yield
        return
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield
