"""Datasets: loading, partitioning among clients, tokenization and batching."""

from fedsvd.data.batches import collate, encode, eval_batches, padded_width, sort_by_length, tokenize
from fedsvd.data.chat import conversation_check
from fedsvd.data.instructions import build_instructions, end_token, pack_sequences, prompt_ids, tokenize_instructions
from fedsvd.data.loaders import load, load_data
from fedsvd.data.partition import fingerprint, partition
from fedsvd.data.sequences import build_prompts, check_conversations, stop_tokens
from fedsvd.data.words import locate_words

__all__ = [
    "sort_by_length",
    "collate",
    "conversation_check",
    "encode",
    "end_token",
    "eval_batches",
    "fingerprint",
    "build_instructions",
    "build_prompts",
    "check_conversations",
    "load",
    "load_data",
    "locate_words",
    "pack_sequences",
    "padded_width",
    "partition",
    "prompt_ids",
    "stop_tokens",
    "tokenize",
    "tokenize_instructions",
]
