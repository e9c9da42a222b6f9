"""Short texts of four domains with mean ratings (Hutto and Gilbert 2014, ICWSM); movies are the embedded default."""

from __future__ import annotations

import html
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets

from fedsvd.assets import VADER, fetch
from fedsvd.data.split import hold_out, hold_out_documents
from fedsvd.errors import DataError

_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
DOMAINS = tuple(_FILES)
# Their rows are numbered DOCUMENT_SNIPPET; those of the other two name no document.
_NUMBERED_BY_DOCUMENT = ("products", "editorials")
_FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})


@dataclass(frozen=True)
class _Rated:
    document: str
    rating: float
    text: str


def load_movie_reviews(*, test_fraction: float, min_abs_rating: float, seed: int) -> DatasetDict:
    """Load the movie-review snippets as ``train`` and ``test``, with both classes in their share of the whole.

    A text's label is the sign of its mean rating. A text that occurs twice is kept once, so that none is on both sides.
    The source numbers its snippets one by one and names no review or film, so snippets of one review can end up on
    both sides; no split can prevent it.

    Args:
        test_fraction: Share held out, between 0 and 1.
        min_abs_rating: Texts whose rating is no further from zero are left out; 0 leaves out those rated exactly 0.
        seed: Of the shuffle.

    Raises:
        AssetError: The package cannot be had.
        DataError: A value out of range, or too few texts are left for both sides.
    """
    return hold_out(_labelled(_beyond(_read("movies"), min_abs_rating)), test_fraction, seed)


def load_sentiment_domains(
    *, domains: Sequence[str], test_fraction: float, min_abs_rating: float, seed: int
) -> DatasetDict:
    """Load several domains as one data set with a column ``domain``: natural silos for ``partition=by_column``.

    Snippets of one product review or editorial stay on one side.

    Args:
        domains: Some of `DOMAINS`.
        test_fraction: Share of each domain that is held out.
        min_abs_rating: As for `load_movie_reviews`.
        seed: Of the shuffles.

    Raises:
        AssetError: The package cannot be had.
        DataError: An unknown domain, a value out of range, or too few texts are left for both sides.
    """
    parts = []
    for domain in domains:
        if domain not in DOMAINS:
            raise DataError(f"data.domains holds {domain!r}, which is not known; allowed: {', '.join(DOMAINS)}.")
        rows = _beyond(_read(domain), min_abs_rating)
        labelled = _labelled(rows).add_column("domain", [domain] * len(rows))
        if domain in _NUMBERED_BY_DOCUMENT:
            parts.append(hold_out_documents(labelled, [row.document for row in rows], test_fraction, seed))
        else:
            parts.append(hold_out(labelled, test_fraction, seed))
    sides = {name: concatenate_datasets([part[name] for part in parts]) for name in ("train", "test")}
    return DatasetDict({name: side.shuffle(seed=seed) for name, side in sides.items()})


def _beyond(rows: Sequence[_Rated], min_abs_rating: float) -> list[_Rated]:
    """Keep what is rated clearly enough; of equal texts, the last rating in the first's place."""
    kept: dict[str, _Rated] = {}
    for row in rows:
        if abs(row.rating) > min_abs_rating:
            kept[row.text] = row
    if not kept:
        raise DataError(
            f"data.min_abs_rating = {min_abs_rating} leaves no text of {len(rows)}; ratings go from -4 to 4."
        )
    return list(kept.values())


def _labelled(rows: Sequence[_Rated]) -> Dataset:
    columns = {"text": [row.text for row in rows], "label": [int(row.rating > 0) for row in rows]}
    return Dataset.from_dict(columns, features=_FEATURES)


def _read(domain: str) -> list[_Rated]:
    with tarfile.open(fetch(VADER)) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, _OUTER))) as inner:
        lines = _member(inner, f"hutto_ICWSM_2014/{_FILES[domain]}").decode("utf-8").splitlines()
    rows = (line.split("\t", 2) for line in lines if line.strip())
    return [
        _Rated(number.partition("_")[0], float(rating), html.unescape(text).strip()) for number, rating, text in rows
    ]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise DataError(f"{name} in the embedded archive is not a file.")
    return stream.read()
