"""Rows of a table that can be used: their texts, classes and answers, and which rows are left out for which reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, Features, List, Value

from fedsvd.data.cells import convert_cells, hidden_labels
from fedsvd.data.conversations import NO_MESSAGES, CanLearn, learnable_conversations, to_conversation
from fedsvd.data.table import Table
from fedsvd.data.targets import CLASS, TargetKind, read_targets, stored_targets
from fedsvd.data.values import abbreviate, is_integer, to_class_name, to_text
from fedsvd.data.words import read_words
from fedsvd.errors import DataError

NO_TEXT, NO_PAIR, NO_LABEL, NO_ANSWER = "no text", "no second text", "no label", "no answer"
HIDDEN_LABEL = "hidden label (-1)"
# Names of the columns of a loaded dataset.
ROLES = ("text", "text_pair", "label", "response", "messages")
# A column of the rows' numbers in their file, which no file has.
ROW_NUMBER = "row number of fedsvd"
# The class of all rows of data without classes.
ANY_CLASS = "any"
_MAX_RECORDED = 1000


@dataclass(frozen=True)
class Columns:
    """The names of a dataset's columns; one column can have several roles.

    Attributes:
        text: Column with the text, or with its words (see `fedsvd.data.words`); None if there are conversations.
        text_pair: Column with the second text of a pair; None for single texts.
        label: Column with the label, such as a class: a number or any text; None if there are no classes, so that all
            rows get the same one.
        keep: Additional column to retain, as for ``partition=by_column``; None for none.
        response: Column with the answer that a language model learns; None to learn the class name.
        messages: Column with conversations, of which a language model learns the assistant turns; None for texts.
        can_learn: Whether a model can learn from a conversation; None: not checked.
        kind: What a label is.
        needs_response: Whether a row without an answer is left out; a classifier does not read answers.
    """

    text: str | None
    text_pair: str | None
    label: str | None
    keep: str | None
    response: str | None = None
    messages: str | None = None
    can_learn: CanLearn | None = None
    kind: TargetKind = CLASS
    needs_response: bool = True

    @property
    def kept_name(self) -> str | None:
        """The name of the additional column in the loaded dataset; None if there is none besides ``label``."""
        return None if self.keep is None or self.keep == self.label == "label" else stored_name(self.keep)


@dataclass(frozen=True)
class LeftOut:
    """The rows of a file that are left out.

    Attributes:
        source: The file.
        num_rows: Number of rows in the file.
        reasons: Numbers of the rows by reason; each row has one reason.
    """

    source: str
    num_rows: int
    reasons: Mapping[str, Sequence[int]]

    def __str__(self) -> str:
        counts = "; ".join(
            f"{len(rows)} with {reason} (row{'s' if len(rows) > 1 else ''} {abbreviate(rows, 10)})"
            for reason, rows in self.reasons.items()
        )
        return f"{self.source}: {sum(map(len, self.reasons.values()))} of {self.num_rows} rows are left out: {counts}"

    def as_dict(self) -> dict[str, Any]:
        """Return the record for ``run.json``; long lists of row numbers are shortened."""
        reasons = {
            reason: {"count": len(rows), "rows": list(rows[:_MAX_RECORDED])} for reason, rows in self.reasons.items()
        }
        return {"source": self.source, "num_rows": self.num_rows, "reasons": reasons}


@dataclass(frozen=True)
class Rows:
    """The usable rows of a table.

    Attributes:
        source: The table.
        numbers: Number of each row in its file.
        columns: Values by column name (see `ROLES`), with class names as ``label``; the additional column, if any, has
            None for empty cells.
        kind: What a label is.
        class_names: Names of the classes, in order, if the file has them.
        left_out: The other rows.
        kept_name: Name of the additional column; None for none.
        keeps_label: Whether the additional column is the class.
    """

    source: str
    numbers: Sequence[int]
    columns: Mapping[str, Sequence[Any]]
    kind: TargetKind
    class_names: Sequence[str] | None
    left_out: LeftOut
    kept_name: str | None
    keeps_label: bool


def stored_name(column: str) -> str:
    """Return the name under which an additional column is stored, which differs from the names of the roles."""
    return f"{column} of the file" if column in ROLES else column


def select_rows(table: Table, columns: Columns, *, pair_is_optional: bool | None = None) -> Rows:
    """Select the rows that have a text, a second text, a label, an answer and messages, as far as these are named.

    Args:
        table: The table.
        columns: Names of its columns.
        pair_is_optional: Whether an empty second text is an empty text; otherwise its row is left out. None: if there
            are answers, because the second text is then additional text for a language model.

    Raises:
        DataError: A cell holds a value that is no text, such as a list, the number of no class, or no conversation.
    """
    roles = _read_roles(table, columns, columns.response is not None if pair_is_optional is None else pair_is_optional)
    hidden = hidden_labels(table, columns.label) if columns.label is not None else set()
    needed = list(roles.values())
    if columns.messages is not None:
        needed += learnable_conversations(table, roles["messages"][1], columns.can_learn)
    reasons: dict[str, list[int]] = {}
    usable = []
    for index, number in enumerate(table.row_numbers):
        reason = next((reason for reason, values in needed if values[index] is None), None)
        if reason is None:
            usable.append(index)
        else:
            reason = HIDDEN_LABEL if reason == NO_LABEL and index in hidden else reason
            reasons.setdefault(reason, []).append(number)
    selected: dict[str, Sequence[Any]] = {name: [values[i] for i in usable] for name, (_, values) in roles.items()}
    selected.setdefault("label", [ANY_CLASS] * len(usable))
    if columns.keep is not None and columns.kept_name is not None:
        kept = convert_cells(table, columns.keep, to_class_name)
        selected[columns.kept_name] = [kept[i] for i in usable]
    return Rows(
        table.source,
        [table.row_numbers[i] for i in usable],
        selected,
        columns.kind,
        [ANY_CLASS] if columns.label is None else table.named_classes(columns.label),
        LeftOut(table.source, len(table.row_numbers), reasons),
        columns.kept_name,
        columns.keep is not None and columns.keep == columns.label,
    )


def _read_roles(table: Table, columns: Columns, pair_is_optional: bool) -> dict[str, tuple[str, Sequence[Any]]]:
    """Return, by role, the reason to leave out a row without a value, and the values."""
    roles: dict[str, tuple[str, Sequence[Any]]] = {}
    if columns.messages is not None:
        # Numbers of classes are no conversations: without their names, they are refused as numbers.
        unnamed = replace(table, class_names={})
        roles["messages"] = (NO_MESSAGES, convert_cells(unnamed, columns.messages, to_conversation))
    if columns.text is not None and columns.kind.of_words:
        words = convert_cells(replace(table, class_names={}), columns.text, read_words)
        roles["text"] = (NO_TEXT, [row or None for row in words])
    elif columns.text is not None:
        roles["text"] = (NO_TEXT, convert_cells(table, columns.text, to_text))
    if columns.text_pair is not None:
        pairs = convert_cells(table, columns.text_pair, to_text)
        roles["text_pair"] = (NO_PAIR, [text or "" for text in pairs] if pair_is_optional else pairs)
    if columns.label is not None:
        roles["label"] = (NO_LABEL, read_targets(table, columns.label, columns.kind))
        if columns.kind.of_words:
            _check_tags(table, columns, roles)
    if columns.response is not None:
        answers = convert_cells(table, columns.response, to_text)
        roles["response"] = (NO_ANSWER, answers if columns.needs_response else [text or "" for text in answers])
    return roles


def _check_tags(table: Table, columns: Columns, roles: Mapping[str, tuple[str, Sequence[Any]]]) -> None:
    """Raise `DataError` if a text has another number of tags than words."""
    for number, words, tags in zip(table.row_numbers, roles["text"][1], roles["label"][1], strict=True):
        if words is not None and tags is not None and len(words) != len(tags):
            raise DataError(
                f"{table.source}: row {number}: column {columns.text!r} holds {len(words)} words and column "
                f"{columns.label!r} {len(tags)} tags: give one tag per word."
            )


def build_dataset(rows: Rows, class_names: Sequence[str]) -> Dataset:
    """Build a dataset whose ``label`` has positions in ``class_names`` (see `fedsvd.data.targets`).

    The additional column has integers if all of its values are integers. If it has empty cells, the column `ROW_NUMBER`
    has the rows' numbers (see `drop_unassigned`).
    """
    labels, feature = stored_targets(rows.columns["label"], class_names, rows.kind)
    columns: dict[str, Sequence[Any]] = {**rows.columns, "label": labels}
    features = {name: Value("string") for name in columns} | {"label": feature}
    if rows.kind.of_words:
        features["text"] = List(Value("string"))
    if rows.kept_name is not None and rows.keeps_label:
        # Clients are numbered like the classes.
        columns[rows.kept_name], features[rows.kept_name] = labels, feature
    elif rows.kept_name is not None:
        values = columns[rows.kept_name]
        if all(value is None or is_integer(value) for value in values):
            columns[rows.kept_name] = [None if value is None else int(value) for value in values]
            features[rows.kept_name] = Value("int64")
        if None in values:
            columns[ROW_NUMBER], features[ROW_NUMBER] = rows.numbers, Value("int64")
    return Dataset.from_dict(columns, features=Features(features))


def drop_unassigned(dataset: Dataset, column: str | None) -> tuple[Dataset, list[int]]:
    """Drop the rows whose additional column is empty, which belong to no client.

    This comes after the split, so that which rows are held out does not depend on the partition.

    Args:
        dataset: The training examples.
        column: Name of the additional column in the file; None drops no row.

    Returns:
        The other rows, and the numbers of the dropped ones in their file.
    """
    if ROW_NUMBER not in dataset.column_names:
        return dataset, []
    numbers, dataset = list(dataset[ROW_NUMBER]), dataset.remove_columns(ROW_NUMBER)
    if column is None:
        return dataset, []
    assigned = [value is not None for value in dataset[stored_name(column)]]
    dropped = [number for number, kept in zip(numbers, assigned, strict=True) if not kept]
    return dataset.select([index for index, kept in enumerate(assigned) if kept]), sorted(dropped)


def missing_columns(table: Table, columns: Columns) -> list[str]:
    """Return the named columns that the table does not have."""
    named = (columns.messages, columns.text, columns.text_pair, columns.label, columns.response, columns.keep)
    return list(dict.fromkeys(name for name in named if name is not None and name not in table.names))
