"""Tests of the interface that all methods share, also that of the example for contributors."""

import re
import textwrap
from dataclasses import replace
from typing import Any

import pytest
import torch
from documented import ROOT
from test_methods import as_parts, make_adapter, product, reply

from fedsvd.methods import METHODS, Method, State, build_method, sent_factors
from fedsvd.methods.aggregate import Reply


@pytest.mark.parametrize("name", METHODS)
def test_every_method_satisfies_the_interface(name: str) -> None:
    check_interface(build_method({"name": name}))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_averages_the_head(name: str) -> None:
    method = build_method({"name": name})
    adapter = replace(make_adapter(core=method.traits.core), head={"w": torch.zeros(2)})
    sent = {factor: torch.ones_like(adapter.part(factor)["s"]) for factor in sent_factors(method, 1)}
    replies = [
        Reply(client, weight, {**reply(client, weight, **sent).parts, "head": {"w": torch.tensor([first, 0.0])}})
        for client, weight, first in ((0, 1, 4.0), (1, 3, 0.0))
    ]

    step = method.server_step(adapter, replies, 1, {})

    assert step.adapter.head["w"].tolist() == [1.0, 0.0]


def test_the_example_for_contributors_satisfies_the_interface() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^ *```python\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    defined: dict[str, Any] = {"__name__": __name__}
    exec(textwrap.dedent(code), defined)
    check_interface(defined["EqualLoRA"]())


def check_interface(method: Method) -> None:
    """Check what all methods have in common, over four rounds of one client."""
    adapter = make_adapter(core=method.traits.core)
    state: State = {}
    for server_round in (1, 2, 3, 4):
        trains, uplink = method.trains(server_round), sent_factors(method, server_round)
        assert uplink
        assert trains <= {"A", "B", "core"}
        assert method.traits.personal <= trains
        sent = {factor: torch.randn_like(adapter.part(factor)["s"]) for factor in uplink}
        step = method.server_step(adapter, [reply(0, 1, **sent)], server_round, state)
        for part in ("A", "B", "core"):
            assert {n: t.shape for n, t in step.adapter.part(part).items()} == {
                n: t.shape for n, t in adapter.part(part).items()
            }
        # Clients of the one send a tangent vector; those of the other change only one of the factors that they send.
        if not method.traits.tangent and not method.traits.per_site:
            # With one client, the global model is that client's model, however the method factorizes it.
            torch.testing.assert_close(product(step.adapter), product(adapter.with_parts(as_parts(sent))))
        adapter, state = step.adapter, step.state
