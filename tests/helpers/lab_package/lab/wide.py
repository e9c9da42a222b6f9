"""A head with a hidden layer."""

from torch import nn


def build(width: int, num_labels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, num_labels))
