"""Invented letters of two classes."""

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedsvd.config import DataConfig

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["calm", "urgent"])})


def load(config: DataConfig, seed: int) -> DatasetDict:
    rows = [{"text": f"letter {n}: {('no hurry', 'come at once')[n % 2]}", "label": n % 2} for n in range(120)]
    return DatasetDict(
        {
            "train": Dataset.from_list(rows[:80], features=FEATURES),
            "test": Dataset.from_list(rows[80:], features=FEATURES),
        }
    )
