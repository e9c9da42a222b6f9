"""Replies of clients that train A in coordinates of public inputs: the server knows the map of their noise."""

import pytest
import torch
from flwr.app import Message, RecordDict

from fedsvd.compat.flower import set_task_identity
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import DivergedUpdateError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_run_method
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.plan import calibrate_run
from fedsvd.runtime.model import initial_adapter, load_model
from fedsvd.runtime.public_statistics import input_preconditioners
from fedsvd.runtime.round_maps import max_stretch
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport
from server.replies import read_plain_reply, report_noise_std

EXAMPLES = 60
OVERRIDES = [
    "experiment=smoke", "method.pivot=A", "method.init_a=zeros", "method.init_b=orthonormal",
    "privacy.standardize_inputs=true", "privacy.target_epsilon=0.2", "privacy.accountant=rdp", "model.rank=16",
]  # fmt: skip


def read(config: Config, start: Adapter, report: ClientReport, A: dict[str, torch.Tensor]) -> Reply:
    set_task_identity(1, 7, 1)
    content = train_messages.train_reply(report, payload.pack(start.with_parts({"A": A}), ["A"]))
    message = Message(content, reply_to=Message(RecordDict(), 2, "train"))
    return read_plain_reply(message, 0, frozenset({"A"}), start, config, 1)[0]


def test_the_noise_of_an_honest_client_is_accepted() -> None:
    config = compose(OVERRIDES)
    spend = calibrate_run(config, EXAMPLES)
    report = ClientReport(0, EXAMPLES, 1.0, 0.2, spend.noise_multiplier, spend.sample_rate, 1, clipped_share=0.5)
    start, noise_std = initial_adapter(config, build_run_method(config)), report_noise_std(report, config, 1)
    matrices = input_preconditioners(load_model(config), config.model)
    torch.manual_seed(0)
    noise = {name: noise_std * torch.randn_like(A) @ matrices[name] for name, A in start.A.items()}

    assert read(config, start, report, noise).noise_std == noise_std
    with pytest.raises(DivergedUpdateError, match="is too large: the settings of this round allow"):
        read(config, start, report, {name: 3 * max_stretch(config, {"A"}) * A for name, A in noise.items()})


def test_the_stretch_is_the_largest_norm_of_a_matrix() -> None:
    config = compose(OVERRIDES)
    matrices = input_preconditioners(load_model(config), config.model).values()
    largest = max(float(torch.linalg.matrix_norm(matrix.double(), 2)) for matrix in matrices)

    assert max_stretch(config, {"A", "head"}) == pytest.approx(largest)
    assert largest > 1
    assert max_stretch(config, {"B", "head"}) == 1.0
    assert max_stretch(compose([*OVERRIDES, "privacy.standardize_inputs=false"]), {"A"}) == 1.0
    assert max_stretch(compose([*OVERRIDES, "privacy=none"]), {"A"}) == 1.0
