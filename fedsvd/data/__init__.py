"""Datasets: loading, partitioning among clients, tokenization and batching."""

from fedsvd.data.batches import collate, encode, eval_batches, sort_by_length, tokenize
from fedsvd.data.instructions import build_instructions, pack_sequences, prompt_ids, tokenize_instructions
from fedsvd.data.loaders import load, load_data
from fedsvd.data.partition import fingerprint, partition

__all__ = [
    "sort_by_length",
    "collate",
    "encode",
    "eval_batches",
    "fingerprint",
    "build_instructions",
    "load",
    "load_data",
    "pack_sequences",
    "partition",
    "prompt_ids",
    "tokenize",
    "tokenize_instructions",
]
