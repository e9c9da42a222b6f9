"""Check of the datasets that other packages add (entry point ``fedsvd.data``)."""

from __future__ import annotations

from datasets import ClassLabel, DatasetDict

from fedsvd.errors import DataError


def checked_splits(name: str, splits: object, *, one_class: bool) -> DatasetDict:
    """Return the splits ``train`` and ``test`` of what the loader of another package returns.

    Args:
        name: Name of the dataset.
        splits: What its loader returns.
        one_class: Whether each text must have one class.

    Raises:
        DataError: It is not a `DatasetDict` with both splits and the columns ``text`` and ``label``.
    """
    found = {key: split.features for key, split in splits.items()} if isinstance(splits, DatasetDict) else {}
    for split in ("train", "test"):
        features = found.get(split, {})
        if not {"text", "label"} <= set(features) or (one_class and not isinstance(features["label"], ClassLabel)):
            columns = {key: list(value) for key, value in found.items()}
            raise DataError(
                f"data.name = {name!r}: the loader of another package returns a {type(splits).__name__} with columns "
                f"{columns or 'of no split'}: expected a DatasetDict with the splits train and test, each with the "
                "columns text and label, the classes as a ClassLabel. Correct the loader."
            )
    return DatasetDict({split: splits[split] for split in ("train", "test")})  # type: ignore[index]
