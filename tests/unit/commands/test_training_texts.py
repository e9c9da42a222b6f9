"""A warning where ``fedsvd evaluate`` is to score texts that the model was trained on."""

from pathlib import Path

import pytest

from fedsvd.commands.evaluated_data import plan_evaluation
from fedsvd.config.compose import compose

REVIEWS = ["data=movie_reviews"]
DOMAINS = ["data=sentiment_domains", "data.domains=[movies,tweets]", "partition=iid"]
HUB = ["data=hub", "data.path=lab/notes", "data.subset=a"]
TRAIN = "lab/notes, split 'train'"


def warnings(own: list[str], *overrides: str, every_split: bool = False) -> tuple[str, ...]:
    plan = plan_evaluation(Path("/nonexistent"), compose(["model=tiny", *own]), overrides, every_split=every_split)
    assert not plan.own_data
    return plan.warnings


def is_warned_of(source: str, found: tuple[str, ...]) -> bool:
    return found == (f"the model was trained on rows of {source}: this is no estimate of its accuracy on other texts",)


@pytest.mark.parametrize(
    ("own", "overrides", "source"),
    [
        (REVIEWS, ["data=movie_reviews", "data.min_abs_rating=1.0"], "data=movie_reviews"),
        (REVIEWS, ["data=sentiment_domains", "data.domains=[movies]"], "data=sentiment_domains"),
        (DOMAINS, ["data=sentiment_domains", "data.domains=[tweets]"], "data=sentiment_domains"),
        (DOMAINS, ["data=movie_reviews"], "data=movie_reviews"),
        (DOMAINS, ["data=sentiment_domains", "data.domains=[products]"], ""),
        (REVIEWS, ["data=sentiment_domains", "data.domains=[tweets]"], ""),
        (REVIEWS, ["data=bbc_news"], ""),
    ],
)
def test_other_filters_of_the_texts_of_a_run(own: list[str], overrides: list[str], source: str) -> None:
    found = warnings(own, *overrides)
    assert is_warned_of(source, found) if source else not found


def test_both_files_that_are_scored_are_compared_with_the_training_file(tmp_path: Path) -> None:
    own, other = tmp_path / "own.csv", tmp_path / "other.csv"
    for path in (own, other):
        path.write_text("text,label\na,x\nb,y\n")
    (tmp_path / "link.csv").hardlink_to(own)
    run, named = ["data=csv", f"data.path={own}"], [f"data.path={own}", f"data.test_path={other}"]

    assert not warnings(run, *named)
    assert is_warned_of(str(own), warnings(run, *named, every_split=True))
    assert is_warned_of(str(own), warnings(run, f"data.path={other}", f"data.test_path={own}"))
    assert is_warned_of(f"{tmp_path}/link.csv", warnings(run, f"data.path={tmp_path}/link.csv"))


def test_the_training_split_on_the_hub() -> None:
    assert is_warned_of(TRAIN, warnings(HUB, "data.test_split=train"))
    assert is_warned_of(TRAIN, warnings(HUB, "data.test_split=validation", every_split=True))
    assert not warnings(HUB, "data.test_split=validation")
    assert not warnings(HUB, "data.subset=b", every_split=True)
