"""Base models and tokenizers: loading, embedded models, and an optimization for first-token classifiers."""
