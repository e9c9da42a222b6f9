"""Loss and exact match of a causal language model on answers, with logits at the answer tokens only.

An example is one sequence of prompt, answer and end token. As in transformers, tokens that do not contribute to the
loss have label -100. The output layer is applied only at positions that predict an answer token: with a vocabulary of
50,000, the logits of whole prompts would take more memory than the model. `fedsvd.training.token_scores` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from fedsvd.data.instructions import IGNORED
from fedsvd.training.token_scores import score_tokens


@dataclass(frozen=True)
class AnswerScores:
    """The scores of a batch's answers under a model.

    Attributes:
        losses: Cross-entropy of each answer token, shape (batch, answer length); 0 after the end of an answer.
        counts: Number of tokens in each answer, shape (batch,).
        correct: Whether each answer token is the most likely one, shape (batch, answer length); False after the end.
        exact: Whether every token of the answer is the most likely one, so that greedy decoding reproduces the answer,
            shape (batch,). Of several answers in one sequence, as in a conversation, it is about the last one, given
            what precedes it.
    """

    losses: Tensor
    counts: Tensor
    correct: Tensor
    exact: Tensor

    @property
    def means(self) -> Tensor:
        """Mean cross-entropy per answer token of each example, shape (batch,)."""
        return self.losses.sum(1) / self.counts


def score_answers(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> AnswerScores:
    """Run a model on a batch and score its answers.

    Args:
        model: A causal language model, or a wrapper around one.
        inputs: Keyword arguments of its forward pass.
        labels: Shape (batch, length), -100 for tokens that do not contribute to the loss. Each row needs at least one
            other label after its first position.
    """
    targets = labels[:, 1:]
    in_answer = targets != IGNORED
    counts = in_answer.sum(1)
    # A stable sort puts the positions of the answer first and preserves their order.
    positions = in_answer.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    losses, correct = score_tokens(model, inputs, positions, targets.gather(1, positions))
    exact = (correct | ~_last_answer(in_answer).gather(1, positions)).all(1)
    return AnswerScores(losses, counts, correct, exact)


def _last_answer(in_answer: Tensor) -> Tensor:
    """Mark the last run of consecutive answer tokens in each row; both masks have shape (batch, length)."""
    # The number of times that an answer begins at a position or after it.
    begins = in_answer & ~functional.pad(in_answer, (1, 0))[:, :-1]
    after = begins.flip(1).cumsum(1).flip(1)
    return in_answer & (after - begins.long() == 0)
