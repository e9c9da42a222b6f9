"""A small configuration of training."""

from fedsvd.config import TrainConfig


def train_config(**changes: object) -> TrainConfig:
    """Return the configuration of four rounds with a learning rate of 0.5, with changes."""
    values = {"optimizer": "sgd", "learning_rate": 0.5, "num_rounds": 4, "local_steps": 1, "batch_size": 2} | changes
    return TrainConfig(**values)
