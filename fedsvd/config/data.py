"""The schema of the group ``data``."""

from __future__ import annotations

import re
import string
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from fedsvd.config import plugins
from fedsvd.config.group import ConfigGroup
from fedsvd.config.task import PLAIN_TEXT
from fedsvd.config.types import ClassDescriptions, ClassNames, Count, Fraction, LabelRange, Names, Text
from fedsvd.errors import ConfigError


def _check_added(name: str) -> str:
    if name not in plugins.names(plugins.DATA):
        raise ValueError("unknown data set")
    return name


BuiltInData = Literal[
    "movie_reviews", "sentiment_domains", "reuters_r8", "newsgroups", "bbc_news", "chitchat",
    "csv", "jsonl", "parquet", "arrow", "hub", "node",
]  # fmt: skip
DatasetName = Annotated[
    BuiltInData | Annotated[str, AfterValidator(_check_added)],
    Field(description=f"one of {', '.join(get_args(BuiltInData))}, or a data set of another package"),
]
Separator = Annotated[
    str, Field(pattern=r'^([^"\r\n]|\\t|tab)$', description="one character (quote it, as in ';'), or tab")
]
LabelSeparator = Annotated[str, Field(pattern=r"^[^\s\"]$", description="one character that is not white space")]


@dataclass(frozen=True)
class DataConfig(ConfigGroup):
    """The labeled texts.

    Attributes:
        name: An embedded data set; the format of a local file; ``hub``; ``node``: each node provides its own data; or
            a data set that another package adds (see CONTRIBUTING.md).
        test_fraction: Fraction of the examples that is held out, for data that come without a split.
        min_abs_rating: Texts whose mean rating (−4 … 4) is at most this far from 0 are dropped; with 0, those rated
            exactly 0.
        domains: Domains of ``sentiment_domains`` to use: ``movies``, ``products``, ``tweets``, ``editorials``.
        path: A local file, or the id of a data set on the Hugging Face Hub.
        test_path: File with the held-out set; null holds out ``test_fraction`` of ``path``.
        subset: Configuration name of a data set on the hub.
        test_split: Split of a data set on the hub that is held out; null holds out ``test_fraction`` of ``train``.
        separator: Separator of the columns of a CSV file: one character, or ``tab``.
        text_column: Column of the text, in local files and on the hub.
        text_pair_column: Column of the second text of a pair; null if the data have single texts.
        label_column: Column of the class; null if there are no classes, as often for a language model.
        response_column: Column of the answers that a language model is trained on; null trains it on the names of the
            classes or, with ``label_column=null``, on every token of the text.
        messages_column: Column of conversations in the chat format, on whose assistant turns a language model is
            trained: lists of turns with ``role`` (system, user or assistant) and ``content``; replaces the columns of
            text and answer.
        prompt_template: Prompt of a language model (``model.task=causal_lm``): text with the placeholder ``{text}``,
            and optionally ``{text_pair}`` and ``{choices}``, the names of the classes.
        labels: Classes of ``node``, in the order of their indices; other data sets define their own.
        label_separator: Separator of the classes in a text of several classes (``model.task`` =
            ``multi_label_classification``); JSON lines and Parquet may have lists instead. An empty list means that no
            class applies; an empty cell means that the label is missing, and leaves the row out.
        label_range: The lowest and the highest possible label with ``model.task`` = ``regression``, as in ``[1, 5]``.
            The model is then trained on labels that are mapped to 0 … 1; predictions and exported models have the
            original scale. It must be public, such as the ends of a scale, and never be computed from private labels.
            null: labels are used as they are.
        class_descriptions: Invented sentences as somebody might write them for each class, from which
            ``train.head_init=zero_shot`` starts the head: a mapping from class names to lists of sentences, or one list
            per class, in the order of the classes; for a regression, a list for the lowest and one for the highest
            label. They are public.
        evaluate_on: ``test``, or ``validation``: a part of the training set that is excluded from training. Choose
            settings on the latter and report results on the former.
        validation_fraction: Fraction of the training set in that part.
        max_train_examples: Maximum number of training examples, of each node with ``data=node``; they are drawn at
            random. null for all. On nodes, one more row changes at most one of the others; see docs/privacy.md.
        max_test_examples: Maximum number of test examples; they are drawn at random. null for all. It does not limit
            a validation set, whose size follows from ``max_train_examples`` and ``validation_fraction``.
    """

    group: ClassVar[str] = "data"

    name: DatasetName
    test_fraction: Fraction = 0.2
    min_abs_rating: Annotated[float, Field(ge=0, lt=4)] = 0.5
    domains: Names = ("movies", "products", "tweets", "editorials")
    path: Text | None = None
    test_path: Text | None = None
    subset: Text | None = None
    test_split: Text | None = "test"
    separator: Separator = ","
    text_column: Text = "text"
    text_pair_column: Text | None = None
    label_column: Text | None = "label"
    response_column: Text | None = None
    messages_column: Text | None = None
    prompt_template: Text = "{text}"
    labels: ClassNames | None = None
    class_descriptions: ClassDescriptions | None = None
    label_separator: LabelSeparator = ";"
    label_range: LabelRange | None = None
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: Fraction = 0.1
    max_train_examples: Count | None = None
    max_test_examples: Count | None = None

    def __post_init__(self) -> None:
        _check_template(self)
        _check_row_format(self)

    @property
    def row_format(self) -> Literal["answers", "messages", "plain_text"]:
        """What a language model learns from a row: an answer to a prompt, assistant turns, or every token."""
        if self.messages_column is not None:
            return "messages"
        return "plain_text" if self.label_column is None and self.response_column is None else "answers"

    @property
    def prompt_parts(self) -> tuple[str, str]:
        """The parts of ``prompt_template`` before and after ``{text}``, each a template of its own."""
        [field] = _text_fields(self.prompt_template)
        return self.prompt_template[: field.start()], self.prompt_template[field.end() :]

    def task_name(self, model_task: str) -> str:
        """Return the key in `fedsvd.config.task.TASKS` of a model's task on these data."""
        return PLAIN_TEXT if self.row_format == "plain_text" else model_task


def _check_row_format(data: DataConfig) -> None:
    """Reject keys of prompts and answers that have no effect on conversations or on plain text."""
    if data.row_format == "answers":
        return
    values = {"text_pair_column": None, "prompt_template": "{text}"}
    if data.row_format == "messages":
        values |= {"response_column": None, "text_column": "text"}
        reason = f"data.messages_column = {data.messages_column}: conversations contain their prompts and answers"
        remedy = "or leave data.messages_column out"
    else:
        reason = "data.response_column = None and data.label_column = None: every token of the text is learned"
        remedy = "or name the column of the answers or of the classes"
    for key, default in values.items():
        if getattr(data, key) != default:
            allowed = "null" if default is None else f"'{default}'"
            raise ConfigError(
                f"data.{key} = {getattr(data, key)!r} has no effect with {reason}. Set data.{key}={allowed}, {remedy}."
            )


def _text_fields(template: str) -> list[re.Match[str]]:
    """Return the places of ``{text}``; after an escaped brace it is literal text, as in ``{{text}}``."""
    return [match for match in re.finditer(r"\{\{|\{text\}", template) if match[0] == "{text}"]


def _check_template(data: DataConfig) -> None:
    template = data.prompt_template
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        is_known = set(fields) <= {"text", "text_pair", "choices"}
        if is_known:
            # Refuses formats that no text has, such as {choices:d}.
            template.format(text="a text", text_pair="a text", choices="a text")
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"data.prompt_template = {template!r} is invalid ({error}): write {{{{ and }}}} for literal braces."
        ) from error
    if not is_known or fields.count("text") != 1 or len(_text_fields(template)) != 1:
        raise ConfigError(
            f"data.prompt_template = {template!r} is invalid: it must contain {{text}} once, and may contain "
            "{text_pair} and {choices} (the names of the classes)."
        )
    for field, key in {"text_pair": "text_pair_column", "choices": "label_column"}.items():
        if field in fields and getattr(data, key) is None:
            raise ConfigError(
                f"data.prompt_template = {template!r} is not possible with data.{key} = None, which would fill "
                f"{{{field}}}: name the column, or remove {{{field}}} from the template."
            )
