"""Federated LoRA fine-tuning under differential privacy, with SVD-based refactorization on the server."""

__version__ = "0.1.0"
