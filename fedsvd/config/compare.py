"""The schema of the group ``compare``, which exists only in ``fedsvd compare``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from pydantic.dataclasses import dataclass

from fedsvd.config.compare_keys import check_free_keys, protects_clients, without_privacy_keys
from fedsvd.config.group import ConfigGroup
from fedsvd.config.paths import override_key
from fedsvd.config.types import Count, DistinctTuple, Names, NonEmptyTuple, Seed, Text
from fedsvd.errors import ConfigError

# The entry of without_privacy for all contenders, and the suffix of the variants.
_ALL, _VARIANT = "all", "_shared_noise"
NamedOverrides = Annotated[
    Mapping[str, list[str]],
    Field(min_length=1, description="names, each with a list of overrides, for example {mine: ['method=fedsvd']}"),
]

Grids = Annotated[
    Mapping[str, DistinctTuple[PositiveFloat]],
    Field(description="names, each with a list of different numbers > 0, for example {mine: [0.1, 0.3]}"),
]


@dataclass(frozen=True)
class CompareConfig(ConfigGroup):
    """The contenders, tasks, budgets and seeds of a comparison.

    Attributes:
        contenders: The overrides of each contender, by its name. One that sets ``train.learning_rate`` is not tuned.
            With ε = 0, those of ``privacy`` and ``federation.weighting=inverse_variance`` are left out.
        with_shared_noise: Contenders of which there is also a variant, ``NAME_shared_noise``; null for none.
        shared_noise: What the variants override in addition.
        shared_noise_of: What they override after that on a task, by its name.
        tasks: The overrides of each task, by its name.
        without_privacy: What runs with ε = 0 override in addition, before the contender's own overrides: those of
            ``all``, then those of the contender's name.
        epsilons: Privacy budgets ε; 0 means no privacy. Variants with shared noise have no run without privacy.
        seeds: Each contender, task and budget is run once per seed.
        learning_rates: Grid from which each contender's learning rate is chosen, by accuracy on validation texts.
        learning_rates_of: Other grids, by the name of the contender. They hold for its variant, too.
        learning_rates_without_privacy: The grid of all contenders with ε = 0.
        grid_extensions: How often a grid is extended by one rate where its smallest or largest rate is the best one, in
            the ratio of its last two rates; 0 keeps all grids as they are.
        clipping_factors: Multiples of ``privacy.max_grad_norm`` that are tried on the same validation texts with the
            chosen learning rate, and that of the head, divided by the multiple; null keeps the norm.
        tuning_epsilons: Budgets at which the learning rate is chosen; other budgets use the choice at the nearest one.
            Variants with shared noise need one above 0.
        tuning_task: Task on which the learning rate is chosen for all tasks; null: each task chooses its own.
        tuning_seed: Seed of the tuning runs; must not be one of ``seeds``.
        baseline: Contender that the others are compared with, in paired differences.
        num_workers: Number of worker processes; they share the CPU cores equally.
        only_contenders: Names of the contenders to run; null for all.
        only_tasks: Names of the tasks to run; null for all.
    """

    group: ClassVar[str] = "compare"

    contenders: NamedOverrides
    with_shared_noise: Names | None
    shared_noise: NonEmptyTuple[Text]
    shared_noise_of: NamedOverrides
    tasks: NamedOverrides
    without_privacy: NamedOverrides
    epsilons: DistinctTuple[NonNegativeFloat]
    seeds: DistinctTuple[Seed]
    learning_rates: DistinctTuple[PositiveFloat]
    learning_rates_of: Grids
    learning_rates_without_privacy: DistinctTuple[PositiveFloat]
    grid_extensions: NonNegativeInt
    clipping_factors: DistinctTuple[PositiveFloat] | None
    tuning_epsilons: DistinctTuple[NonNegativeFloat]
    tuning_task: Text | None
    tuning_seed: Seed
    baseline: Text
    num_workers: Count
    only_contenders: Names | None
    only_tasks: Names | None

    def __post_init__(self) -> None:
        self._add_variants()
        self._check_names()
        self._check_overrides()
        if self.tuning_seed in self.seeds:
            raise ConfigError(
                f"compare.tuning_seed = {self.tuning_seed} is one of compare.seeds = {list(self.seeds)}: settings "
                "chosen on a split must not be reported on it. Give a different seed."
            )
        self._check_budgets()

    def _check_names(self) -> None:
        for key, selected in (("contenders", self.only_contenders), ("tasks", self.only_tasks)):
            unknown = sorted(set(selected or ()) - set(getattr(self, key)))
            if unknown:
                raise ConfigError(
                    f"compare.only_{key} names {', '.join(unknown)}; allowed: {', '.join(getattr(self, key))}."
                )
        for key, kind, names in (
            ("learning_rates_of", "contenders", {*self.contenders}),
            ("without_privacy", "contenders", {*self.contenders, _ALL}),
            ("shared_noise_of", "tasks", {*self.tasks}),
        ):
            unknown = sorted({*getattr(self, key)} - names)
            if unknown:
                raise ConfigError(
                    f"compare.{key} names {', '.join(unknown)}, which is not among the {kind}: give some of "
                    f"{', '.join(getattr(self, kind))}."
                )
        if self.baseline not in self.contenders:
            raise ConfigError(
                f"compare.baseline = {self.baseline!r} is not among the contenders: give one of "
                f"{', '.join(self.contenders)}."
            )
        if self.tuning_task is not None and self.tuning_task not in self.tasks:
            raise ConfigError(
                f"compare.tuning_task = {self.tuning_task!r} is not among the tasks: give one of "
                f"{', '.join(self.tasks)}, or null."
            )

    def _check_overrides(self) -> None:
        check_free_keys("compare.shared_noise", self.shared_noise, of_contender=True)
        for key in ("contenders", "tasks", "without_privacy", "shared_noise_of"):
            for name, given in getattr(self, key).items():
                check_free_keys(f"compare.{key}.{name}", given, of_contender=key == "contenders")

    def _check_budgets(self) -> None:
        """Check that there is a run, and that each contender is run at the budget that chooses its learning rate."""
        cells = [(name, epsilon) for name in self.chosen_contenders for epsilon in self.epsilons]
        runs = [(name, epsilon) for name, epsilon in cells if self.runs_at(name, epsilon)]
        if not runs:
            raise ConfigError(
                f"compare.epsilons = {list(self.epsilons)} leaves no run of {', '.join(self.chosen_contenders)}: there "
                "is no noise to share without privacy. Give a budget > 0, or other names in compare.only_contenders."
            )
        untuned = [
            name
            for name, epsilon in runs
            if not self.runs_at(name, self.nearest_tuning_epsilon(epsilon)) and self.own_learning_rate(name) is None
        ]
        if untuned:
            raise ConfigError(
                f"compare.tuning_epsilons = {list(self.tuning_epsilons)} has no budget at which the learning rate of "
                f"{', '.join(dict.fromkeys(untuned))} can be chosen: there is no noise to share without privacy. Add a "
                "budget > 0, or leave these out with compare.only_contenders or compare.with_shared_noise."
            )

    def _add_variants(self) -> None:
        contenders = {name: list(overrides) for name, overrides in self.contenders.items()}
        for name in self.with_shared_noise or ():
            if name not in self.contenders:
                raise ConfigError(
                    f"compare.with_shared_noise names {name}, which is not among the contenders: give some of "
                    f"{', '.join(self.contenders)}, or null."
                )
            contenders.setdefault(f"{name}{_VARIANT}", [*contenders[name], *self.shared_noise])
        object.__setattr__(self, "contenders", contenders)

    def own_learning_rate(self, contender: str) -> float | None:
        """Return the learning rate that a contender sets itself; None if it is to be tuned."""
        given = [
            item.partition("=")[2] for item in self.contenders[contender] if override_key(item) == "train.learning_rate"
        ]
        if not given:
            return None
        try:
            rate = float(given[-1])
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise ConfigError(
                f"compare.contenders.{contender} sets train.learning_rate={given[-1]}, which is invalid: give a number "
                "> 0, or leave it out to have it tuned."
            )
        return rate

    def grid(self, contender: str, epsilon: float) -> Sequence[float]:
        """Return the learning rates that are tried for a contender at a budget; none if it sets its own."""
        if self.own_learning_rate(contender) is not None or not self.runs_at(contender, epsilon):
            return ()
        if not epsilon:
            return self.learning_rates_without_privacy
        base = self.learning_rates_of.get(contender.removesuffix(_VARIANT), self.learning_rates)
        return self.learning_rates_of.get(contender, base)

    def runs_at(self, contender: str, epsilon: float) -> bool:
        """Return whether a contender is run at a budget: there is no noise to share without privacy."""
        return epsilon > 0 or not self._is_variant(contender)

    def _is_variant(self, contender: str) -> bool:
        base = contender.removesuffix(_VARIANT)
        return base != contender and base in (self.with_shared_noise or ())

    def nearest_tuning_epsilon(self, epsilon: float) -> float:
        """Return the tuning budget nearest to ``epsilon`` by ratio.

        Runs without privacy (0) use the settings that were tuned without privacy, if it is among the tuning budgets.
        """

        def distance(other: float) -> float:
            if not epsilon or not other:
                return 0.0 if epsilon == other else math.inf
            return abs(math.log(epsilon / other))

        return min(self.tuning_epsilons, key=distance)

    def run_overrides(self, contender: str, epsilon: float, task: str) -> list[str]:
        """Return what a contender overrides at a budget on a task, including the privacy."""
        own = self.contenders[contender]
        if self._is_variant(contender):
            own = [*own, *self.shared_noise_of.get(task, ())]
        if epsilon:
            return ["privacy=dp_sgd", f"privacy.target_epsilon={epsilon:g}", *own]
        settings = [item for name in (_ALL, contender) for item in self.without_privacy.get(name, ())]
        return ["privacy=none", *settings, *without_privacy_keys(own)]

    def is_client_level(self, contender: str) -> bool:
        """Return whether ε of a contender is for each client's whole data set, and not for each example."""
        return protects_clients(self.contenders[contender])

    @property
    def chosen_contenders(self) -> tuple[str, ...]:
        """Names of the contenders to run."""
        return self.only_contenders or tuple(self.contenders)

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """Names of the tasks to run."""
        return self.only_tasks or tuple(self.tasks)


def at_an_end(rates: Sequence[float], best: float) -> bool:
    """Return whether the best learning rate is the smallest or the largest of several that were tried."""
    return len(set(rates)) > 1 and best in (min(rates), max(rates))
