"""Base models and tokenizers: loading, models shipped in registry packages, and first-token classifiers."""
