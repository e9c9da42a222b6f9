"""FedSVD with a pivot per site: each site trains the factor that has made more progress than its noise explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.batched import refactorize_sites
from fedsvd.lora.trained_factor import trains_b
from fedsvd.methods.aggregate import Replies, average, mean_noise_std
from fedsvd.methods.method import State, Step, Traits

_PROGRESS: Mapping[Factor, str] = {"A": "progress_a", "B": "progress_b"}


@dataclass(frozen=True)
class FedSVDPerSite:
    """FedSVD in which each site trains A or B, chosen after each round (by the idea of AS-LoRA, arXiv 2605.05769).

    As in FedSVD with a pivot, the factor that is not trained is orthonormal: the mean is exact, noise is never
    multiplied by noise, and ``‖ΔB A‖ = ‖ΔB‖`` and ``‖B ΔA‖ = ‖ΔA‖``, so that the progress of both factors is that of
    the weight. With n entries and noise of standard deviation s in each entry of the mean update Δ, the progress is

        ``max(0, ‖Δ‖² - n s²)``

    All sites train B in the first round and A in the second one. After that, a site trains the factor with the larger
    progress in the last round in which it was trained, and the other one if neither has any.

    Clients compute and send both factors, and change the one that is not orthonormal.
    """

    init_a: str = "orthonormal"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(per_site=True)

    def __post_init__(self) -> None:
        if self.init_a == "kaiming" or self.init_b != "zeros":
            raise ConfigError(
                f"method.init_a = {self.init_a} and method.init_b = {self.init_b} are not possible with "
                "method=fedsvd_per_site: B is trained first, from zero, against an orthonormal A. Set method.init_a to "
                "a value other than kaiming, and method.init_b=zeros."
            )

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors; clients train one of them at each site (`fedsvd.lora.trained_factor`)."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average the trained factors, choose those of the next round, and refactorize."""
        trained: dict[str, Factor] = {n: "B" if trains_b(adapter.B[n], A) else "A" for n, A in adapter.A.items()}
        averaged = _keep_frozen(adapter, average(adapter, replies), trained)
        progress = {key: dict(state.get(key, {})) for key in _PROGRESS.values()}
        for name, factor in trained.items():
            update = averaged.part(factor)[name].double() - adapter.part(factor)[name].double()
            noise = update.numel() * mean_noise_std(replies) ** 2
            progress[_PROGRESS[factor]][name] = (update.square().sum() - noise).clamp_min(0)
        following = {name: _choose(name, factor, progress) for name, factor in trained.items()}
        return Step(_refactorize(averaged, following), state=progress)


def _keep_frozen(before: Adapter, averaged: Adapter, trained: Mapping[str, Factor]) -> Adapter:
    """Return the averaged adapter with the frozen factors as they were: noise of the server may have changed them."""
    A = {name: averaged.A[name] if trained[name] == "A" else old for name, old in before.A.items()}
    B = {name: averaged.B[name] if trained[name] == "B" else old for name, old in before.B.items()}
    return averaged.with_parts({"A": A, "B": B})


def _choose(name: str, trained: Factor, progress: Mapping[str, Mapping[str, Tensor]]) -> Factor:
    other: Factor = "A" if trained == "B" else "B"
    own, others = progress[_PROGRESS[trained]][name], progress[_PROGRESS[other]].get(name)
    return trained if others is not None and bool(own > others) else other


def _refactorize(adapter: Adapter, trained: Mapping[str, Factor]) -> Adapter:
    """Return factors of the same products; at each site, the factor that is not trained next is orthonormal."""
    A, B = dict(adapter.A), dict(adapter.B)
    for factor in ("A", "B"):
        names = [name for name in adapter.A if trained[name] == factor]
        if names:
            chosen = Adapter({n: adapter.A[n] for n in names}, {n: adapter.B[n] for n in names}, {}, adapter.scale)
            refactorized, _ = refactorize_sites(chosen, of_rows=factor == "B")
            A.update(refactorized.A)
            B.update(refactorized.B)
    return adapter.with_parts({"A": A, "B": B})
