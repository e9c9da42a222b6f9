"""Federated LoRA fine-tuning under differential privacy, with an SVD on the server."""

__version__ = "0.1.0"
