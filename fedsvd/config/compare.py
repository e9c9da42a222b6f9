"""The schema of ``compare``, which only ``fedsvd compare`` has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fedsvd.config.types import Count, Positive
from fedsvd.config.validate import Range, check_fields
from fedsvd.errors import ConfigError

Seed = Annotated[int, Range(0, 2**32, open_high=True)]


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, on what, and how often.

    Attributes:
        contenders: From a name to the overrides that make it.
        tasks: From a name to the overrides that make it.
        epsilons: Budgets; 0 stands for no privacy at all.
        seeds: One run for each, of every contender, task and budget.
        learning_rates: The grid from which each contender's own is chosen, on validation texts.
        tuning_epsilons: Budgets at which it is chosen; every other one takes the choice at the nearest.
        tuning_task: The task on which it is chosen for all of them; null: on each for itself.
        tuning_seed: Seed of the runs that it is chosen by; none of ``seeds``.
        baseline: The contender that the others are paired with.
        num_workers: Processes, each with its share of the cores.
        only_contenders: Names of the contenders to run; null for all.
        only_tasks: Names of the tasks; null for all.
    """

    contenders: Mapping[str, Any]
    tasks: Mapping[str, Any]
    epsilons: tuple[Annotated[float, Range(0)], ...]
    seeds: tuple[Seed, ...]
    learning_rates: tuple[Positive, ...]
    tuning_epsilons: tuple[Annotated[float, Range(0)], ...]
    tuning_task: str | None
    tuning_seed: Seed
    baseline: str
    num_workers: Count
    only_contenders: tuple[str, ...] | None
    only_tasks: tuple[str, ...] | None

    def __post_init__(self) -> None:
        for key in ("contenders", "tasks"):
            named = getattr(self, key)
            if not isinstance(named, Mapping) or not named or not all(_is_list_of_texts(v) for v in named.values()):
                raise ConfigError(
                    f"compare.{key} = {named!r} is not allowed: give names, each with a list of overrides, as in "
                    f"compare.{key}.mine=['method=fedsvd']."
                )
        check_fields(_Rest(*(getattr(self, name) for name in _Rest.__annotations__)), "compare")
        for key, only in (("contenders", self.only_contenders), ("tasks", self.only_tasks)):
            unknown = sorted(set(only or ()) - set(getattr(self, key)))
            if unknown:
                raise ConfigError(
                    f"compare.only_{key} names {', '.join(unknown)}; there are {', '.join(getattr(self, key))}."
                )
        if self.baseline not in self.contenders:
            raise ConfigError(
                f"compare.baseline = {self.baseline!r} is not among the contenders: {', '.join(self.contenders)}."
            )
        if self.tuning_task is not None and self.tuning_task not in self.tasks:
            raise ConfigError(
                f"compare.tuning_task = {self.tuning_task!r} is not among {', '.join(self.tasks)}; or give null."
            )
        if self.tuning_seed in self.seeds:
            raise ConfigError(
                f"compare.tuning_seed = {self.tuning_seed} is one of compare.seeds = {list(self.seeds)}: what is "
                "chosen on a split must not be reported on it. Take another."
            )

    @property
    def chosen_contenders(self) -> tuple[str, ...]:
        """Names of the contenders that are run."""
        return self.only_contenders or tuple(self.contenders)

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are run."""
        return self.only_tasks or tuple(self.tasks)


@dataclass(frozen=True)
class _Rest:
    """The fields that their annotations say all about."""

    epsilons: tuple[Annotated[float, Range(0)], ...]
    seeds: tuple[Seed, ...]
    learning_rates: tuple[Positive, ...]
    tuning_epsilons: tuple[Annotated[float, Range(0)], ...]
    tuning_task: str | None
    tuning_seed: Seed
    baseline: str
    num_workers: Count
    only_contenders: tuple[str, ...] | None
    only_tasks: tuple[str, ...] | None


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
