"""Settings and rows of small comparisons."""

from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import compose_compare

SMALL = [
    "compare.only_contenders=[fedsvd,flora]", "compare.only_tasks=[movies]", "compare.epsilons=[0,3]",
    "compare.seeds=[0,1]", "compare.learning_rates=[0.5,1]", "compare.clipping_factors=null",
    "compare.without_privacy={all:['train.head_rounds=0']}", "compare.learning_rates_without_privacy=[0.25]",
    "compare.grid_extensions=0",
]  # fmt: skip


def settings(*overrides: str) -> CompareConfig:
    """Return the settings of a small comparison."""
    return compose_compare([*SMALL, *overrides])[1]


def row(contender: str, accuracy: float, rate: float = 0.5, **given: object) -> dict[str, object]:
    """Return a row of ``results.jsonl``, of a tuning run unless given otherwise."""
    base = {"phase": "tuning", "task": "movies", "contender": contender, "epsilon": 3, "seed": 100}
    return {**base, "learning_rate": rate, "accuracy": accuracy, **given}
