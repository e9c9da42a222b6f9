"""Tests of invalid method options, and of settings that a method does not support."""

import pytest

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.methods import METHODS, build_method, build_run_method, check_method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fedsdv"}, "did you mean fedsvd"),
        ({"name": "fedsvd", "refactorise_every": 2}, "did you mean refactorize_every"),
        ({"name": "fedsvd", "refactorize_every": 0}, "at least 1"),
        ({"name": "fedsvd", "refactorize_every": 1.5}, "an integer"),
        ({"name": "ffa_lora", "init_a": "ones"}, "kaiming, orthonormal"),
        ({"name": "ffa_lora", "init_b": "dct"}, "kaiming, orthonormal, weight_svd, zeros"),
        ({"name": "fedsvd", "pivot": "C"}, "method.pivot = 'C' is invalid"),
        ({"name": "fedsvd", "pivot": "AB"}, "has no gradient where B is zero"),
        ({"name": "fedsvd", "pivot": "A", "init_b": "orthonormal"}, "method.init_a=zeros"),
        ({"name": "fedsvd", "pivot": "A", "init_a": "zeros", "init_b": "kaiming"}, "orthonormal, weight_svd, public"),
        ({"name": "fedsvd", "pivot": "BA", "init_a": "zeros"}, "never have a gradient"),
        ({"name": "fedsvd", "pivot": 2}, "method.pivot = 2 is invalid"),
        ({"name": "fedsvd", "shrinkage": "some"}, "none, optimal"),
        ({"name": "fedsvd", "shrinkage": "optimal", "pivot": "BA"}, "only one trained factor"),
        ({"name": "fedsvd", "shrinkage": "optimal", "init_a": "kaiming"}, "an A that is orthonormal"),
        ({"name": "fed_sb", "init_b": "zeros"}, "which does not train B"),
        ({"name": "flora", "init_a": "weight_svd"}, "draws new factors"),
        ({"name": "fedavg_lora", "init_a": "zeros"}, "never have a gradient"),
    ],
)
def test_invalid_options_raise(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(options)


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["federation.secure_aggregation=true"], "federation.secure_aggregation = True"),
        (["privacy=client_level"], "privacy.name = client_level"),
        (["train.server_optimizer=adam"], "train.server_optimizer = adam"),
    ],
)
@pytest.mark.parametrize("name", ["fedex_lora", "flora", "flexlora"])
def test_nonlinear_method_rejects_settings_that_hide_single_updates(
    name: str, overrides: list[str], setting: str
) -> None:
    config = compose(["experiment=smoke", f"method={name}", *overrides])
    with pytest.raises(ConfigError, match=f"{setting} is unsupported with method.name = {name}"):
        check_method(build_method(config.method), config)
    linear = compose(["experiment=smoke", "method=ffa_lora", *overrides])
    check_method(build_method(linear.method), linear)


@pytest.mark.parametrize("name", METHODS)
def test_client_ranks_are_accepted_or_rejected_by_method(name: str) -> None:
    supported = {"fedsvd", "ffa_lora", "flora", "flexlora"}
    config = compose(["experiment=smoke", f"method={name}", "federation.client_ranks=[2,4]"])
    if name in supported:
        check_method(build_method(config.method), config)
    else:
        with pytest.raises(
            ConfigError, match=r"client_ranks = \[2, 4\] is unsupported .*default options: fedsvd, ffa_lora"
        ):
            check_method(build_method(config.method), config)


def test_personal_factors_reject_client_level_privacy() -> None:
    config = compose(["experiment=smoke", "method=fedsa_lora", "privacy=client_level"])
    with pytest.raises(ConfigError, match="no noise protects them"):
        check_method(build_method(config.method), config)


def test_personal_factors_reject_shared_noise() -> None:
    shared = ["experiment=smoke", "federation.secure_aggregation=true", "privacy.noise_share=true",
              "privacy.noise_multiplier=8", "train.local_steps=1"]  # fmt: skip
    config = compose([*shared, "method=fedsa_lora"])
    with pytest.raises(ConfigError, match=r"noise_share = True is unsupported .* that client's share of the noise"):
        check_method(build_run_method(config), config)
    # Without factors, nothing is personal.
    for others in (["method=fedavg_lora"], ["method=fedsa_lora", "train.head=private", "train.trains=head"]):
        config = compose([*shared, *others])
        check_method(build_run_method(config), config)


@pytest.mark.parametrize(
    "override",
    ["train=adamw", "train.momentum=0.9", "train.weight_decay=0.1", "train.server_optimizer=momentum",
     "federation.secure_aggregation=true", "federation.weighting=uniform"],
)  # fmt: skip
def test_shrinkage_rejects_settings_with_unknown_noise(override: str) -> None:
    settings = ["experiment=smoke", "method.shrinkage=optimal", override]
    config = compose(settings)
    with pytest.raises(ConfigError, match="requires a known standard deviation of the noise"):
        check_method(build_method(config.method), config)
    # Without noise, nothing is shrunk.
    config = compose([*settings, "privacy=none"])
    check_method(build_method(config.method), config)


@pytest.mark.parametrize("override", ["train.local_steps=2", "train.weight_decay=0.1", "train.server_optimizer=adam"])
def test_tangent_takes_one_plain_step(override: str) -> None:
    config = compose(["experiment=smoke", "method=tangent", "train.local_steps=1", override])
    with pytest.raises(ConfigError, match=f"{override.split('=')[0]} = .* one step in the tangent space"):
        check_method(build_method(config.method), config)


@pytest.mark.parametrize("name", ["fedex_lora", "flora"])
def test_methods_that_change_frozen_weights_reject_quantized_ones(name: str) -> None:
    config = compose(["experiment=smoke", f"method={name}", "model.quantization=nf4"])
    with pytest.raises(ConfigError, match=f"quantization = nf4 is unsupported with method.name = {name}"):
        check_method(build_method(config.method), config)


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["method=tangent", "train.local_steps=1"], "method.name = tangent"),
        (["train.head=private", "privacy.project_public_mean=true"], "privacy.project_public_mean = True"),
        (["method.init_a=public_pca"], "method.init_a = public_pca"),
    ],
)
def test_tensors_on_several_devices_cannot_be_combined(overrides: list[str], setting: str) -> None:
    config = compose(["experiment=smoke", "model.device_map=auto", *overrides])
    with pytest.raises(ConfigError, match=f"device_map = auto is unsupported with {setting}, which combines"):
        check_method(build_method(config.method), config)
