"""The figures of docs/published_code.md."""

import math
import re
from pathlib import Path

import pytest

from fedsvd.privacy.accounting import Spend, calibrate, epsilon
from fedsvd.privacy.gaussian import gaussian_epsilon

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "published_code.md").read_text()
DELTA = 1e-5
STEPS = 1000


@pytest.mark.slow
def test_a_row_of_the_table_is_what_the_accountant_computes() -> None:
    target, rate = 6, 0.1
    worst = calibrate(target, DELTA, rate, STEPS)
    cells = [f"{worst:.2f}"]
    for noise in (calibrate(target, DELTA, rate / 2, STEPS), calibrate(target, DELTA, rate, STEPS // 2)):
        spent = epsilon([Spend(noise, rate, STEPS)], DELTA)
        cells += [f"{noise:.2f}", f"{noise / worst:.0%}".replace("%", " %"), f"{spent:.1f}"]
    assert f"| {target} | {rate} | {' | '.join(cells)} |" in PAGE


def test_epsilon_of_one_clipping_norm_per_tensor() -> None:
    noise = math.sqrt(2 * math.log(1.25 / DELTA)) / 25
    pattern = r"exact ε of that Gaussian mechanism is\s+(\d+) for one tensor, and ([\d,]+)"
    ((one, many),) = re.findall(pattern, PAGE)
    assert f"{noise:.3f}" in PAGE
    assert math.ceil(gaussian_epsilon(1 / noise, DELTA)) == int(one)
    assert math.ceil(gaussian_epsilon(math.sqrt(128) / noise, DELTA)) == int(many.replace(",", ""))
