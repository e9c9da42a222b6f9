"""Text: where it comes from, who holds what, and how it becomes batches."""

from fedsvd.data.batches import by_length, collate, eval_batches, tokenize
from fedsvd.data.movie_reviews import load_movie_reviews
from fedsvd.data.partition import fingerprint, partition

__all__ = ["by_length", "collate", "eval_batches", "fingerprint", "load_movie_reviews", "partition", "tokenize"]
