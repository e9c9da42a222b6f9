"""Local optimization: the training loop, per-example gradients, cached frozen layers, and causal language models."""
