"""Text: where it comes from, who holds what, and how it becomes batches."""

from fedsvd.data.batches import by_length, collate, encode, eval_batches, tokenize
from fedsvd.data.instructions import instructions, packed, prompt_ids, tokenize_instructions
from fedsvd.data.loaders import load
from fedsvd.data.partition import fingerprint, partition

__all__ = [
    "by_length",
    "collate",
    "encode",
    "eval_batches",
    "fingerprint",
    "instructions",
    "load",
    "packed",
    "partition",
    "prompt_ids",
    "tokenize",
    "tokenize_instructions",
]
