"""Data, model and losses of a configuration, shared by both apps and cached per process."""
