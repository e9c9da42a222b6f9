"""Whether data that ``fedsvd evaluate`` is to score have texts that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from fedsvd.config import DataConfig, is_same_file

FILES = ("csv", "jsonl", "parquet", "arrow", "node")
# The split of a dataset on the hub that is trained on.
_TRAINED_SPLIT = "train"


def training_texts(own: DataConfig, scored: DataConfig, *, every_split: bool) -> str:
    """Return which of the scored data have training texts; empty if they are not known to have any.

    Args:
        own: The data of the run.
        scored: The data to score; see `fedsvd.data.labeled.load_all_texts`.
        every_split: Whether both files, or both splits of a dataset on the hub, are scored.
    """
    if scored.name in FILES:
        paths = [path for path in (scored.test_path, scored.path) if path is not None]
        scored_paths = paths if every_split else paths[:1]
        return next((path for path in scored_paths if own.path and is_same_file(path, own.path)), "")
    if scored.name == "hub":
        is_scored = every_split or scored.test_split in (None, _TRAINED_SPLIT)
        same = (own.name, own.path, own.subset) == ("hub", scored.path, scored.subset)
        return f"{scored.path}, split {_TRAINED_SPLIT!r}" if is_scored and same else ""
    return f"data={scored.name}" if {*_sources(own)} & {*_sources(scored)} else ""


def _sources(data: DataConfig) -> Iterator[tuple[str | None, ...]]:
    """Yield what an embedded dataset, or one of another package, consists of, whatever its filters."""
    if data.name == "sentiment_domains":
        yield from (("domain", domain) for domain in data.domains)
    elif data.name == "movie_reviews":
        # The same texts as those of the domain.
        yield "domain", "movies"
    else:
        yield data.name, data.path, data.subset
