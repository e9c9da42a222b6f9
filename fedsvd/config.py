"""The schema of the configuration: one frozen dataclass per group, each field with its type and its allowed values.

The values themselves live in ``conf/``; `fedsvd.compose` puts them together. A field's annotation says all that is
allowed for it alone (`fedsvd.validate` reads it); what must hold between fields is said in ``__post_init__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedsvd.errors import ConfigError
from fedsvd.validate import Matches, Range, check_fields

Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
# 0 included, 1 not: dropout and momentum.
Share = Annotated[float, Range(0, 1, open_high=True)]


@dataclass(frozen=True)
class ModelConfig:
    """The base model and where its LoRA factors sit.

    Attributes:
        name: Name of the option.
        source: ``embedded:minilm``, ``embedded:tiny``, a folder or the id of a model on a hub.
        rank: Rank r of every factor pair B (d_out, r), A (r, d_in).
        lora_alpha: The product B A is scaled by ``lora_alpha / rank``.
        target_modules: Names of the linear layers that get factors.
        lora_layers: ``all``, or ``top_K``: factors in the K layers nearest the output only.
        lora_dropout: Dropout before A.
        max_length: Longest text, in tokens; what is beyond is cut off.
        attn_implementation: ``sdpa`` (fused), or ``eager`` (can be faster for short texts), as transformers has it.
    """

    name: str
    source: str
    rank: Count = 8
    lora_alpha: Positive = 16.0
    target_modules: tuple[str, ...] = ("query", "value")
    lora_layers: Annotated[str, Matches(r"all|top_[1-9]\d*", "all, or top_K for the K layers nearest the output")] = (
        "all"
    )
    lora_dropout: Share = 0.0
    max_length: Count = 64
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        check_fields(self, "model")


@dataclass(frozen=True)
class DataConfig:
    """The labelled texts.

    Attributes:
        name: Name of the data set.
        test_fraction: Share of the examples that is held out for the test.
        min_abs_rating: Snippets whose mean rating (−4 … 4) is nearer to 0 than this are left out.
        max_train_examples: At most so many training examples; null for all.
        max_test_examples: At most so many held-out examples; null for all.
    """

    name: str
    test_fraction: Fraction = 0.2
    min_abs_rating: Annotated[float, Range(0, 4, open_high=True)] = 0.5
    max_train_examples: Count | None = None
    max_test_examples: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data")


@dataclass(frozen=True)
class PartitionConfig:
    """How the training examples are split among the clients.

    Attributes:
        name: ``iid``, or ``dirichlet``: each class is dealt out by shares drawn from a Dirichlet distribution.
        dirichlet_alpha: Its concentration; the smaller, the more unlike the clients.
        min_partition_size: Fewest examples of a client.
    """

    name: Literal["iid", "dirichlet"]
    dirichlet_alpha: Positive = 0.5
    min_partition_size: Count = 10

    def __post_init__(self) -> None:
        check_fields(self, "partition")


@dataclass(frozen=True)
class PrivacyConfig:
    """The guarantee that each client gives to each of its examples, over the whole run.

    Attributes:
        name: ``dp_sgd``, or ``none``: no clipping, no noise, no guarantee; the other fields mean nothing then.
        target_epsilon: ε of the (ε, δ) guarantee.
        target_delta: δ of the (ε, δ) guarantee.
        max_grad_norm: Largest L2 norm of one example's gradient; longer ones are scaled down.
        accountant: How the spend is counted: ``prv`` (tight) or ``rdp``.
    """

    name: Literal["dp_sgd", "none"]
    target_epsilon: Positive = 6.0
    target_delta: Fraction = 1e-5
    max_grad_norm: Positive = 1.0
    accountant: Literal["prv", "rdp"] = "prv"

    def __post_init__(self) -> None:
        check_fields(self, "privacy")


@dataclass(frozen=True)
class TrainConfig:
    """Rounds, local steps and the clients' optimiser.

    Attributes:
        optimizer: ``sgd`` or ``adamw``; a new one each round.
        learning_rate: Step size.
        lr_scheduler_type: ``constant``, or ``linear``: ``learning_rate · (1 − (t−1)/T)`` in round t of T.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        num_rounds: Rounds of the federation.
        local_steps: Optimiser steps of a client in a round.
        batch_size: Expected size of a Poisson batch.
        physical_batch_size: Most examples in memory at once; larger batches are accumulated.
        eval_batch_size: Examples in a batch of the evaluation.
        eval_every: Evaluate after every so many rounds, and after the last.
        head: The classifier head: ``frozen`` as it was drawn, or ``private``: trained and sent like the factors.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    num_rounds: Count
    local_steps: Count
    batch_size: Count
    lr_scheduler_type: Literal["constant", "linear"] = "constant"
    momentum: Share = 0.0
    weight_decay: NonNegative = 0.0
    physical_batch_size: Count = 128
    eval_batch_size: Count = 128
    eval_every: Count = 1
    head: Literal["frozen", "private"] = "frozen"

    def __post_init__(self) -> None:
        check_fields(self, "train")
        if self.optimizer == "adamw" and self.momentum:
            raise ConfigError(
                f"train.momentum = {self.momentum} is not allowed with train.optimizer = adamw, which has no momentum: "
                "set train.momentum=0, or take train=sgd."
            )


@dataclass(frozen=True)
class FederationConfig:
    """The clients, and where they run.

    Attributes:
        name: ``local`` (in this process) or ``simulation`` (Flower's engine); ``flwr run`` ignores it.
        num_clients: Clients in the federation; each holds one partition.
        clients_per_round: Clients drawn for a round; null for all.
        min_replies: Fewest good replies with which a round counts; with fewer the model stays as it was.
        round_timeout_s: Seconds after which a round goes on without those that have not answered.
        connect_timeout_s: Seconds to wait for all clients at the start.
        client_num_cpus: CPU cores of a simulated client.
        client_num_gpus: GPUs of a simulated client; a fraction lets clients share one.
        ray_address: A Ray cluster that is already up; null starts one here.
    """

    name: Literal["local", "simulation"]
    num_clients: Count = 4
    clients_per_round: Count | None = None
    min_replies: Count = 1
    round_timeout_s: Positive = 3600.0
    connect_timeout_s: Positive = 300.0
    client_num_cpus: Positive = 1.0
    client_num_gpus: NonNegative = 0.0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "federation")
        in_a_round = self.clients_per_round or self.num_clients
        if in_a_round > self.num_clients:
            raise ConfigError(
                f"federation.clients_per_round = {in_a_round} is more than "
                f"federation.num_clients = {self.num_clients}: give 1 to {self.num_clients}, or null for all clients."
            )
        if self.min_replies > in_a_round:
            raise ConfigError(
                f"federation.min_replies = {self.min_replies} is more than the {in_a_round} clients of a round, so no "
                f"round could ever count: give 1 to {in_a_round}."
            )
        if self.ray_address is not None and self.name != "simulation":
            raise ConfigError(
                f"federation.ray_address = {self.ray_address!r} has no meaning with federation.name = {self.name}: "
                "take federation=simulation, or set federation.ray_address=null."
            )


@dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
        seed: From it come the initial adapter, the partitions, the batches and the sampling of clients.
        run_dir: Folder of the run; null leaves the choice to Hydra, or to Flower's run id.
        resume: Folder of an earlier run to go on with; null starts anew.
        float32_matmul_precision: As `torch.set_float32_matmul_precision` has it; below ``highest``, torch may pick
            kernels that round inputs (TF32, bfloat16) where the hardware has them.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        method: ``name`` and the method's own options, which `fedsvd.methods` checks.
        model: See `ModelConfig`.
        data: See `DataConfig`.
        partition: See `PartitionConfig`.
        privacy: See `PrivacyConfig`.
        train: See `TrainConfig`.
        federation: See `FederationConfig`.
    """

    seed: Annotated[int, Range(0, 2**32, open_high=True)]
    run_dir: str | None
    resume: str | None
    float32_matmul_precision: Literal["highest", "high", "medium"]
    device: Annotated[str, Matches(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, mps, cuda or cuda:N")]
    method: Mapping[str, Any]
    model: ModelConfig
    data: DataConfig
    partition: PartitionConfig
    privacy: PrivacyConfig
    train: TrainConfig
    federation: FederationConfig

    def __post_init__(self) -> None:
        check_fields(self, "")
        needed = self.federation.num_clients * self.partition.min_partition_size
        limit = self.data.max_train_examples
        if limit is not None and limit < needed:
            raise ConfigError(
                f"data.max_train_examples = {limit} is too few for {self.federation.num_clients} clients with at least "
                f"{self.partition.min_partition_size} examples each: give {needed} or more, or lower "
                "federation.num_clients or partition.min_partition_size."
            )
