"""The schema of the group ``train``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from pydantic.dataclasses import dataclass

from fedsvd.config.group import ConfigGroup
from fedsvd.config.types import ClassWeights, Count, FractionOrZero, LabelCounts, SampleRate
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig(ConfigGroup):
    """Rounds, local steps, and the optimizers of clients and server.

    Attributes:
        optimizer: The clients' optimizer, ``sgd`` or ``adamw``; its state is reset in each round.
        learning_rate: The clients' learning rate.
        lr_scheduler_type: Factor of the clients' learning rates (also of the head's) in round t of T, after W =
            ``warmup_rounds``: ``constant`` (1), ``linear`` (``1 − p``) or ``cosine`` (``(1 + cos(π p)) / 2``), with
            ``p = (t − 1 − W) / (T − W)``. See `training.schedule`.
        warmup_rounds: Number of rounds W at the start in which the factor rises: ``t / (W + 1)`` in round t; below
            ``num_rounds``.
        momentum: Momentum of SGD.
        weight_decay: Weight decay.
        num_rounds: Number of federated rounds.
        local_steps: Optimizer steps of a client in each round.
        batch_size: Expected size of a Poisson-sampled batch; each client's sample rate follows from its number of
            examples.
        sample_rate: Sample rate of all clients, instead of one that follows from ``batch_size``; 1.0: every step takes
            all examples. ``batch_size`` then has no effect, except as the common divisor with ``privacy.noise_share``.
        physical_batch_size: Largest number of examples in memory at once; larger batches are accumulated. ``auto``: the
            largest number that fits on the GPU, found by trying; 128 on a CPU and with Opacus' hooks.
        eval_batch_size: Examples in a batch of the evaluation.
        eval_every: Number of rounds between evaluations; the last round is always evaluated.
        keep_best: Keep the adapter of the best evaluated round in ``adapter-best/``, beside the last one in
            ``adapter/``: the best by the metric by which runs of the task are compared, or by perplexity for a language
            model, on the texts of ``data.evaluate_on``. On the texts by which it was chosen, its figure is optimistic.
        early_stopping: Stop after an evaluated round if the best one, by the same metric, is this many rounds ago or
            more; null: take all rounds. Privacy is spent on the rounds that take place.
        grad_sample_mode: How per-example gradients are computed: ``fused`` (about the cost of plain training),
            ``hooks`` (Opacus' hooks, for any layer that Opacus supports), or ``auto``: fused where the model allows it.
        server_optimizer: How the server applies the clients' mean update: ``none`` (unchanged), ``momentum`` or
            ``adam``; see `server.server_optimizer`.
        server_learning_rate: Learning rate of the server optimizer.
        server_momentum: β of ``momentum``, β₁ of ``adam``.
        server_beta2: β₂ of ``adam``.
        server_tau: τ of ``adam``, added to the square root of its second moment.
        prefix_cache_mib: Memory per process, in MiB, for a cache of the hidden states below the lowest adapted layer,
            computed once per example; 0 computes them every time. If only the last layer is adapted, what its parts
            before the first factors return is cached, too: several vectors per token. Examples that do not fit are
            computed every time.
        head: The classification head: ``frozen`` at its initialization, or ``private``: trained and sent like the
            factors. A language model has none.
        head_init: Initialization of the head. ``auto``: the checkpoint's own head, if it has one whose classes have the
            names of the task's classes, else ``random``; ``checkpoint``: the checkpoint's own head, its classes matched
            by number; ``random``: drawn from the seed. ``zeros`` and ``zero_shot`` (directions from
            ``data.class_descriptions``, without private data; see `fedsvd.models.zero_shot`) set the head's last layer.
        head_learning_rate: The clients' learning rate of the head; null: ``learning_rate``.
        head_rounds: Number of rounds at the start in which only the head is trained; after them, ``trains`` applies.
        trains: What clients train: the ``head``, the method's ``factors``, or ``both`` (unless ``head`` is
            ``frozen``). ``none``: no rounds; the run evaluates the initial model.
        class_weights: Weight of each class in the clients' loss: the loss of an example is multiplied by the weight of
            its class, before its gradient is clipped. ``balanced``: ``n / (K · n_k)`` for n_k of n examples in class k
            of K, from ``label_counts``, or else from the labels of the held-out texts. null: all weights are 1. The
            loss of an evaluation is not weighted.
        label_counts: Public numbers of examples per class, from which ``class_weights=balanced`` is computed. The
            numbers in the clients' data are private, unless they are published.
        clip_grad_norm: Without privacy, largest L2 norm of a batch's gradient; null for no clipping. (With privacy,
            the gradient of each example is clipped: ``privacy.max_grad_norm``.)
        packing: Pack a language model's short sequences into longer ones of up to ``model.max_length`` tokens. A packed
            sequence then counts as one example, so packing is not available with example-level privacy.
    """

    group: ClassVar[str] = "train"

    optimizer: Literal["sgd", "adamw"]
    learning_rate: PositiveFloat
    num_rounds: Count
    local_steps: Count
    batch_size: Count
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: NonNegativeInt = 0
    momentum: FractionOrZero = 0.0
    weight_decay: NonNegativeFloat = 0.0
    physical_batch_size: Count | Literal["auto"] = 128
    eval_batch_size: Count = 128
    eval_every: Count = 1
    keep_best: bool = False
    early_stopping: Count | None = None
    grad_sample_mode: Literal["auto", "fused", "hooks"] = "auto"
    prefix_cache_mib: NonNegativeInt = 1024
    head: Literal["frozen", "private"] = "frozen"
    head_init: Literal["auto", "checkpoint", "random", "zeros", "zero_shot"] = "random"
    head_learning_rate: PositiveFloat | None = None
    head_rounds: NonNegativeInt = 0
    trains: Literal["head", "factors", "both", "none"] = "both"
    sample_rate: SampleRate | None = None
    class_weights: Literal["balanced"] | ClassWeights | None = None
    label_counts: LabelCounts | None = None
    clip_grad_norm: PositiveFloat | None = None
    packing: bool = False
    server_optimizer: Literal["none", "momentum", "adam"] = "none"
    server_learning_rate: PositiveFloat = 1.0
    server_momentum: FractionOrZero = 0.9
    server_beta2: FractionOrZero = 0.99
    server_tau: PositiveFloat = 1e-3

    def __post_init__(self) -> None:
        if self.optimizer == "adamw" and self.momentum:
            raise ConfigError(
                f"train.momentum = {self.momentum} is not allowed with train.optimizer = adamw, which has no momentum: "
                "set train.momentum=0 or train=sgd."
            )
        if self.warmup_rounds >= self.num_rounds:
            raise ConfigError(
                f"train.warmup_rounds = {self.warmup_rounds} is invalid with train.num_rounds = {self.num_rounds}: the "
                f"warm-up must end before the last round. Set it to {self.num_rounds - 1} or less, or raise num_rounds."
            )
        needs_head = {
            f"train.trains = {self.trains}": self.trains == "head",
            f"train.head_rounds = {self.head_rounds}": self.head_rounds > 0,
            f"train.head_learning_rate = {self.head_learning_rate}": self.head_learning_rate is not None,
        }
        for setting, is_set in needs_head.items():
            if is_set and self.head == "frozen":
                raise ConfigError(
                    f"{setting} is not possible with train.head = frozen: set train.head=private, or leave it out."
                )
        if self.head_learning_rate is not None and self.trains == "factors" and not self.head_rounds:
            raise ConfigError(
                f"train.head_learning_rate = {self.head_learning_rate} has no effect with train.trains = factors and "
                "train.head_rounds = 0, where no round trains the head: set train.trains=both, or train.head_rounds to "
                "1 or more, or set train.head_learning_rate=null."
            )

    @property
    def rounds(self) -> int:
        """Number of rounds that a run takes: ``num_rounds``, or 0 if nothing is trained."""
        return 0 if self.trains == "none" else self.num_rounds

    @property
    def uses_method(self) -> bool:
        """Whether the method trains factors after ``head_rounds``, in this run or if it is resumed with more rounds."""
        return self.trains in ("factors", "both")

    @property
    def is_head_only(self) -> bool:
        """Whether every round trains the head and no factor."""
        return self.rounds > 0 and (self.trains == "head" or self.head_rounds >= self.num_rounds)

    def is_evaluated(self, server_round: int) -> bool:
        """Return whether the model is evaluated after a round: server and clients must agree on it."""
        return server_round % self.eval_every == 0 or server_round == self.num_rounds

    def trains_head(self, server_round: int) -> bool:
        """Return whether a classifier's head is trained in a round (1-based)."""
        return self.head == "private" and (server_round <= self.head_rounds or self.trains in ("head", "both"))
