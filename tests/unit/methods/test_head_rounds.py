"""Rounds that train the head alone: before a method's own rounds, and as a run of their own."""

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method, build_run_method, sent_factors
from fedsvd.methods.aggregate import Reply
from fedsvd.methods.head_rounds import HeadFirst, HeadOnly
from fedsvd.runtime.round_parts import sent_parts, trained_parts

PRIVATE = ["experiment=smoke", "train.head=private"]


def make_adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 5, generator=generator), torch.randn(4, 2, generator=generator)
    return Adapter({"q": A}, {"q": B}, {"w": torch.zeros(3)}, {"q": 1.0})


def head_replies() -> list[Reply]:
    return [Reply(0, 1, {"head": {"w": torch.tensor([4.0, 0, 0])}}), Reply(1, 3, {"head": {"w": torch.zeros(3)}})]


def test_the_head_is_averaged_and_no_factor_changes() -> None:
    adapter = make_adapter()
    for method in (HeadOnly(), HeadFirst(build_method({"name": "fedsvd"}), 2)):
        step = method.server_step(adapter, head_replies(), 1, {})
        assert step.adapter.head["w"].tolist() == [1.0, 0, 0]
        assert torch.equal(step.adapter.A["q"], adapter.A["q"])
        assert torch.equal(step.adapter.B["q"], adapter.B["q"])
        assert not step.rotations


def test_the_method_starts_with_its_first_round() -> None:
    method = HeadFirst(build_method({"name": "fedsvd", "pivot": "BA"}), 3)

    assert [sorted(method.trains(n)) for n in range(1, 7)] == [[], [], [], ["B"], ["A"], ["B"]]
    assert [sorted(sent_factors(method, n)) for n in range(3, 6)] == [[], ["B"], ["A"]]
    assert (method.init_a, method.init_b) == ("orthonormal", "zeros")
    adapter = make_adapter()
    reply = Reply(0, 1, {"B": adapter.B})
    ours = method.server_step(adapter, [reply], 4, {})
    own = build_method({"name": "fedsvd", "pivot": "BA"}).server_step(adapter, [reply], 1, {})
    assert torch.equal(ours.adapter.A["q"], own.adapter.A["q"])


def test_state_outlives_the_first_rounds() -> None:
    state = {"x": {"y": torch.ones(1)}}
    method = HeadFirst(build_method({"name": "fedsvd"}), 1)
    assert method.server_step(make_adapter(), head_replies(), 1, state).state == state


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [["B", "head"], ["B", "head"]]),
        (["train.trains=factors"], [["B"], ["B"]]),
        (["train.trains=head"], [["head"], ["head"]]),
        (["train.head_rounds=1"], [["head"], ["B", "head"]]),
        (["train.head_rounds=1", "train.trains=factors"], [["head"], ["B"]]),
        (["train.head_rounds=2", "train.trains=factors"], [["head"], ["head"]]),
    ],
    ids=str,
)
def test_what_is_trained_and_sent(overrides: list[str], expected: list[list[str]]) -> None:
    config = compose([*PRIVATE, *overrides])
    method = build_run_method(config)

    assert [sorted(trained_parts(method, config, n)) for n in (1, 2)] == expected
    assert [sorted(sent_parts(method, config, n)) for n in (1, 2)] == expected


@pytest.mark.parametrize("name", ["fedsvd", "fed_sb", "fedsa_lora"])
def test_a_run_that_ends_before_its_method_starts_is_initialized_like_it(name: str) -> None:
    before, longer = (
        build_run_method(compose([*PRIVATE, f"method={name}", "train.head_rounds=2", f"train.num_rounds={rounds}"]))
        for rounds in (2, 4)
    )

    assert isinstance(before, HeadOnly)
    assert isinstance(longer, HeadFirst)
    assert (before.init_a, before.init_b, before.traits.core) == (longer.init_a, longer.init_b, longer.traits.core)


def test_public_text_is_used_where_the_initialization_is() -> None:
    pca = [*PRIVATE, "method.init_a=public_pca"]
    assert compose([*pca, "train.head_rounds=2"]).public_text_uses == ("initial A",)
    assert compose([*pca, "train.trains=head"]).public_text_uses == ()


@pytest.mark.slow
def test_a_run_without_factors_does_not_use_the_method() -> None:
    for name in ("fedsvd", "fedsa_lora", "fed_sb"):
        for overrides in (["train.trains=head"], ["train.head_rounds=2"], ["train.trains=none"]):
            method = build_run_method(compose([*PRIVATE, f"method={name}", *overrides]))
            assert isinstance(method, HeadOnly)
            assert not method.traits.personal
            assert not method.trains(2)
            assert not sent_factors(method, 2)
    assert compose([*PRIVATE, "train.trains=none"]).train.rounds == 0
