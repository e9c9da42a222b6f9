"""Strategies for any Flower app that trains a PEFT model: the methods of fedsvd in place of Flower's `FedAvg`.

Each strategy is Flower's `FedAvg` with another server step, that of the same method in `fedsvd.methods`, and takes the
same options, by keyword. Arrays are state dicts of PEFT models (`peft.get_peft_model_state_dict`). Each train message
says which factors its round trains, in ``config["lora-factors"]`` (``A``, ``B`` or ``AB``); see `train_factors`.
"""

from fedsvd.flower.client import load_arrays, train_factors
from fedsvd.flower.strategies import FedExLoRA, FedSVD, FFALoRA, FlexLoRA, RoLoRA

__all__ = ["FFALoRA", "FedExLoRA", "FedSVD", "FlexLoRA", "RoLoRA", "load_arrays", "train_factors"]
