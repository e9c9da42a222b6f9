"""Short texts from four domains with mean sentiment ratings (Hutto and Gilbert 2014, ICWSM).

The movie reviews are the default dataset.
"""

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

_INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
DOMAINS = tuple(_FILES)
# Row ids in these files are DOCUMENT_SNIPPET; in the other two files they do not identify a document.
_NUMBERED_BY_DOCUMENT = ("products", "editorials")
_FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})


@dataclass(frozen=True)
class _Snippet:
    document: str
    rating: float
    text: str


def load_movie_reviews(*, test_fraction: float, min_abs_rating: float, seed: int, ratings: bool = False) -> DatasetDict:
    """Load the movie-review snippets as ``train`` and ``test``, stratified by class if the labels are classes.

    A text's label is the sign of its mean rating, or that rating. Duplicate texts are removed, so that no text is in
    both splits. The source numbers its snippets consecutively and does not identify the review or the film, so snippets
    of one review can be in both splits; no split can prevent this.

    Args:
        test_fraction: Fraction of texts to hold out, between 0 and 1.
        min_abs_rating: Skip texts whose absolute rating does not exceed this value; 0 skips those rated exactly 0.
        seed: Seed of the shuffle.
        ratings: The labels are mean ratings from -4 to 4 instead of classes.

    Raises:
        AssetError: The package is unavailable.
        DataError: A value is out of range, or too few texts remain for two splits.
    """
    return hold_out(_to_dataset(_filter_snippets(_read("movies"), min_abs_rating), ratings), test_fraction, seed)


def load_sentiment_domains(
    *, domains: Sequence[str], test_fraction: float, min_abs_rating: float, seed: int
) -> DatasetDict:
    """Load several domains as one dataset with a column ``domain``, for use with ``partition=by_column``.

    Snippets of one product review or editorial are in the same split.

    Args:
        domains: A selection of `DOMAINS`.
        test_fraction: Fraction of each domain to hold out, between 0 and 1.
        min_abs_rating: See `load_movie_reviews`.
        seed: Seed of the shuffles.

    Raises:
        AssetError: The package is unavailable.
        DataError: A domain is unknown, a value is out of range, or too few texts remain for two splits.
    """
    parts = []
    for domain in domains:
        if domain not in DOMAINS:
            raise DataError(f"data.domains contains {domain!r}, which is unknown; allowed: {', '.join(DOMAINS)}.")
        snippets = _filter_snippets(_read(domain), min_abs_rating)
        dataset = _to_dataset(snippets).add_column("domain", [domain] * len(snippets))
        if domain in _NUMBERED_BY_DOCUMENT:
            parts.append(hold_out_documents(dataset, [snippet.document for snippet in snippets], test_fraction, seed))
        else:
            parts.append(hold_out(dataset, test_fraction, seed))
    splits = {name: concatenate_datasets([part[name] for part in parts]) for name in ("train", "test")}
    return DatasetDict({name: split.shuffle(seed=seed) for name, split in splits.items()})


def _filter_snippets(snippets: Sequence[_Snippet], min_abs_rating: float) -> list[_Snippet]:
    """Drop neutral snippets and duplicates; a duplicate's last rating replaces the first, at the first's position."""
    selected: dict[str, _Snippet] = {}
    for snippet in snippets:
        if abs(snippet.rating) > min_abs_rating:
            selected[snippet.text] = snippet
    if not selected:
        raise DataError(
            f"data.min_abs_rating = {min_abs_rating} excludes all {len(snippets)} texts; ratings range from -4 to 4, "
            "so set it to a lower value."
        )
    return list(selected.values())


def _to_dataset(rows: Sequence[_Snippet], ratings: bool = False) -> Dataset:
    if ratings:
        return Dataset.from_dict({"text": [row.text for row in rows], "label": [row.rating for row in rows]})
    columns = {"text": [row.text for row in rows], "label": [int(row.rating > 0) for row in rows]}
    return Dataset.from_dict(columns, features=_FEATURES)


def _read(domain: str) -> list[_Snippet]:
    with tarfile.open(fetch(VADER)) as outer:
        inner_bytes = _read_member(outer, _INNER_ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        lines = _read_member(inner, f"hutto_ICWSM_2014/{_FILES[domain]}").decode("utf-8").splitlines()
    rows = (line.split("\t", 2) for line in lines if line.strip())
    return [
        _Snippet(number.partition("_")[0], float(rating), html.unescape(text).strip()) for number, rating, text in rows
    ]


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise DataError(f"{name} in the package's archive is not a regular file.")
    return stream.read()
