"""The section of a model card on how to load an export: what bfloat16 rounds."""

from pathlib import Path

import pytest
from run_directories import write_run

from fedsvd.config.compose import compose
from fedsvd.runs.folder import RunFolder
from fedsvd.trained.run import TrainedRun
from fedsvd.trained.usage import Layout, usage

BFLOAT16 = "model.dtype=bfloat16"
ANSWERS = ("model=tiny_llama", "data.label_column=label")


def section(folder: Path, layout: Layout, *overrides: str) -> str:
    root = write_run(folder, *overrides)
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    config = compose(["experiment=smoke", *overrides])
    return usage(TrainedRun(RunFolder(root), config, ("negative", "positive"), root / "adapter"), layout)


@pytest.mark.parametrize(
    ("layout", "overrides", "expected"),
    [
        ("merged", (BFLOAT16, "model.pooling=stock"), "the LoRA update and the head are rounded"),
        ("adapter", (BFLOAT16, "model.pooling=stock"), "the LoRA update and the head are rounded"),
        # Here the code calls PEFT, which loads factors as float32.
        ("adapter_and_base", (BFLOAT16, "model.pooling=stock"), "Loaded like this, the head is rounded"),
        ("merged", (BFLOAT16, *ANSWERS), "the LoRA update is rounded"),
        ("adapter", (BFLOAT16, *ANSWERS), None),
        # Written in float32.
        ("merged", (BFLOAT16, "model.pooling=mean"), None),
        ("merged", ("model.pooling=stock",), None),
    ],
)
def test_a_card_says_what_bfloat16_rounds(
    layout: Layout, overrides: tuple[str, ...], expected: str | None, tmp_path: Path
) -> None:
    text = section(tmp_path / "run", layout, *overrides)

    assert ("rounded to bfloat16" in text) == (expected is not None)
    assert expected is None or expected in text
