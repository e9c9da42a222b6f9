"""Text: where it comes from, who holds what, and how it becomes batches."""

from fedsvd.data.batches import by_length, collate, eval_batches, tokenize
from fedsvd.data.partition import fingerprint, partition
from fedsvd.data.sources import load

__all__ = ["by_length", "collate", "eval_batches", "fingerprint", "load", "partition", "tokenize"]
