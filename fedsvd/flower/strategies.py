"""One strategy per method; the server steps are those of `fedsvd.methods`."""

from __future__ import annotations

import re
from typing import Unpack

from fedsvd import methods
from fedsvd.errors import ConfigError
from fedsvd.flower.strategy import FedAvgOptions, LoRAStrategy


class FedSVD(LoRAStrategy):
    """FedSVD (Lee et al., NeurIPS 2025, arXiv 2505.12805): B is averaged, then B A is refactorized by SVD.

    Clients train B and keep A as they received it. They may send B alone, or both factors; a reply with another A than
    the one that was sent is refused. The strategy remembers the A that it has sent.

    The first round starts from the given A. ``fedsvd.refactorize_state_dict`` makes its rows orthonormal, as in all
    later rounds.

    Args:
        refactorize_every: Number of rounds between refactorizations.
        pivot: The factor to train in each round, as a sequence that starts with B and repeats: ``B`` as published, or
            for example ``BA``; see `fedsvd.methods.fedsvd.FedSVD`. PEFT initializes B with zeros, where A has no
            gradient.
        options: Options of Flower's `FedAvg`.

    Raises:
        ConfigError: ``refactorize_every`` or ``pivot`` is invalid.

    Example:
        >>> from fedsvd.flower import FedSVD
        >>> strategy = FedSVD(fraction_train=0.5, min_train_nodes=2, weighted_by_key="num-examples")
        >>> strategy.method.trains(1)
        frozenset({'B'})
    """

    def __init__(self, *, refactorize_every: int = 1, pivot: str = "B", **options: Unpack[FedAvgOptions]) -> None:
        if not re.fullmatch("B[AB]*", str(pivot)):
            raise ConfigError(
                f"pivot = {pivot!r} is invalid: list the factor to train in each round, B first, as in B, BA or BAAA. "
                "B is zero in the arrays of a new PEFT model, so that A has no gradient in the first round."
            )
        super().__init__(methods.fedsvd.FedSVD(refactorize_every=refactorize_every, pivot=pivot), **options)


class FFALoRA(LoRAStrategy):
    """FFA-LoRA (Sun et al., ICLR 2024, arXiv 2403.12313): B is averaged, A is never trained.

    Args:
        options: Options of Flower's `FedAvg`.

    Example:
        >>> from fedsvd.flower import FFALoRA
        >>> FFALoRA(min_train_nodes=3).min_train_nodes
        3
    """

    def __init__(self, **options: Unpack[FedAvgOptions]) -> None:
        super().__init__(methods.ffa_lora.FFALoRA(), **options)


class FlexLoRA(LoRAStrategy):
    """FlexLoRA (Bai et al., NeurIPS 2024, arXiv 2402.11505): the mean of the products B A, truncated by SVD.

    Clients train both factors. All have the rank of ``initial_arrays``.

    Args:
        options: Options of Flower's `FedAvg`.

    Example:
        >>> from fedsvd.flower import FlexLoRA
        >>> sorted(FlexLoRA().method.trains(1))
        ['A', 'B']
    """

    def __init__(self, **options: Unpack[FedAvgOptions]) -> None:
        super().__init__(methods.flexlora.FlexLoRA(), **options)


class FedExLoRA(LoRAStrategy):
    """FedEx-LoRA (Singhal et al., ACL 2025, arXiv 2410.09432): A and B are averaged, the frozen weights get the rest.

    What is added to the frozen weights travels as more arrays, ``….lora_residual_B`` and ``….lora_residual_A``, whose
    rank grows with each round up to that of the weight. Clients, evaluation functions and users of the result must
    load the arrays with `fedsvd.flower.load_arrays`: PEFT's own function ignores these keys.

    Args:
        options: Options of Flower's `FedAvg`.

    Example:
        >>> from fedsvd.flower import FedExLoRA
        >>> sorted(FedExLoRA().method.trains(1))
        ['A', 'B']
    """

    def __init__(self, **options: Unpack[FedAvgOptions]) -> None:
        super().__init__(methods.fedex_lora.FedExLoRA(), **options)


class RoLoRA(LoRAStrategy):
    """RoLoRA (Chen et al., NeurIPS 2025, arXiv 2502.01755): clients train B in odd rounds and A in even ones.

    Args:
        options: Options of Flower's `FedAvg`.

    Example:
        >>> from fedsvd.flower import RoLoRA
        >>> [*RoLoRA().method.trains(1), *RoLoRA().method.trains(2)]
        ['B', 'A']
    """

    def __init__(self, **options: Unpack[FedAvgOptions]) -> None:
        super().__init__(methods.rolora.RoLoRA(), **options)
