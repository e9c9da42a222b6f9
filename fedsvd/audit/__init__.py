"""Empirical privacy audit: attack one client's examples and compare the result with the claimed guarantee."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedsvd.audit.membership_attack import MembershipAttack, attack_membership
from fedsvd.audit.one_run import OneRunAudit, audit_one_run
from fedsvd.config import Config, FederationConfig
from fedsvd.config.audit import AuditConfig
from fedsvd.config.compose import to_yaml
from fedsvd.errors import ConfigError
from fedsvd.launch import check_config
from fedsvd.methods import build_run_method
from fedsvd.privacy.membership import Roc
from fedsvd.report.roc import plot_roc
from fedsvd.runs.folder import RunFolder, write_json, write_text

__all__ = ["check_audit", "run_audit"]


def check_audit(config: Config, settings: AuditConfig) -> None:
    """Check the configuration of an audit before any data or model is loaded.

    Raises:
        ConfigError: The run is not private per example, the audited client does not exist or take part, clients have
            personal models, the noise is shared, the model is distributed, nothing is trained, rounds sample clients,
            the server does more than to average, or the run is resumed; see also `fedsvd.launch.check_config`.
    """
    check_config(config)
    if config.privacy.name != "dp_sgd":
        raise ConfigError(
            f"privacy.name = {config.privacy.name!r} gives no per-example guarantee to audit: set privacy=dp_sgd. To "
            "see an audit fail, add audit.sabotage=no_noise."
        )
    if config.privacy.noise_share:
        raise ConfigError(
            "privacy.noise_share = True adds only a share of the noise to each update, so that its ε holds only for "
            "the secure sum, but an audit attacks the updates of one client: set privacy.noise_share=false."
        )
    if config.model.device_map == "auto":
        raise ConfigError(
            "model.device_map = auto is not possible: an audit combines the gradients of all layers, which would be on "
            "different devices. Set model.device_map=none."
        )
    if build_run_method(config).traits.personal or config.federation.client_ranks is not None:
        raise ConfigError(
            f"method.name = {config.method['name']} with federation.client_ranks = {config.federation.client_ranks} "
            "gives each client its own model, but an audit trains one model that all clients share: use another "
            "method, and set federation.client_ranks=null."
        )
    _check_server(config)
    if config.train.trains == "none":
        raise ConfigError(
            "train.trains = none trains nothing that an audit could attack: set train.trains=head, factors or both."
        )
    _check_clients(config.federation, settings.partition_id)
    if config.resume is not None:
        raise ConfigError(f"resume = {config.resume!r} is not possible: an audit cannot be resumed. Leave the key out.")


def _check_clients(federation: FederationConfig, attacked: int) -> None:
    if attacked >= federation.num_clients:
        raise ConfigError(
            f"audit.partition_id = {attacked} is invalid: expected 0 to {federation.num_clients - 1}, since "
            f"federation.num_clients = {federation.num_clients}."
        )
    if not federation.takes_part(attacked):
        raise ConfigError(
            f"audit.partition_id = {attacked} is a client that does not take part in the run: give one of "
            f"federation.participants = {federation.participating}."
        )
    if federation.num_sampled < federation.num_participants:
        raise ConfigError(
            f"federation.clients_per_round = {federation.num_sampled} is not possible: all "
            f"{federation.num_participants} clients take part in each round of an audit, as the ε of a client in every "
            "round assumes. Set federation.clients_per_round=null."
        )


def _check_server(config: Config) -> None:
    """Reject what the server of a run does and simulated rounds do not: they would attack a model of another run."""
    train, shrinkage = config.train, config.method.get("shrinkage", "none")
    settings = {
        f"train.server_optimizer = {train.server_optimizer}": train.server_optimizer != "none",
        f"method.shrinkage = {shrinkage}": shrinkage != "none",
        f"aggregation.name = {config.aggregation.name}": config.aggregation.name != "mean",
        f"federation.weighting = {config.federation.weighting}": config.federation.weighting == "inverse_variance",
    }
    for setting, is_set in settings.items():
        if is_set:
            raise ConfigError(
                f"{setting} is not possible: the rounds of an audit average the clients' updates. It would not change "
                "what a client sends, which the audit attacks; leave it out."
            )


def run_audit(
    config: Config, settings: AuditConfig, folder: Path, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Attack one client of a federation, and write ``audit.json`` and a plot of the ROC curves.

    Args:
        config: The configuration of the run.
        settings: The client to attack, and how.
        folder: The run directory.
        on_progress: Called with a progress message before each part.

    Returns:
        The content of ``audit.json``.

    Raises:
        ConfigError: See `check_audit`.
        PrivacyError: There are more canaries than trained values.
        RunError: Training diverged.
    """
    check_audit(config, settings)
    started = time.perf_counter()
    # The coin flips are the secret that the attack guesses, so they are seeded by the operating system, not by the
    # run's seed.
    rng = np.random.default_rng()
    on_progress("training once with canaries …")
    one_run = audit_one_run(config, settings, rng)
    membership = None
    if settings.num_shadow_models:
        membership = attack_membership(
            config,
            settings,
            rng,
            lambda done, total: on_progress(f"membership inference: training model {done + 1} of {total} …"),
        )
    result = _summary(config, settings, one_run, membership) | {"seconds": time.perf_counter() - started}
    run_folder = RunFolder(folder)
    write_text(run_folder.config, to_yaml(config))
    write_json(run_folder.audit, result)
    curves = _curves(one_run, membership)
    plot_roc(curves, one_run.claimed_epsilon, config.privacy.target_delta, run_folder.roc_plot)
    return result


def _curves(one_run: OneRunAudit, membership: MembershipAttack | None) -> dict[str, Roc]:
    curves = {"canaries, every update": one_run.roc}
    if membership:
        curves["LiRA, final model"] = membership.lira
        curves["loss threshold, final model"] = membership.loss_threshold
    return curves


def _summary(
    config: Config, settings: AuditConfig, one_run: OneRunAudit, membership: MembershipAttack | None
) -> dict[str, Any]:
    bound = one_run.bound
    return {
        "settings": asdict(settings),
        "canary": "a gradient along one trained coordinate each, scored by every round's update",
        "claimed_epsilon": one_run.claimed_epsilon,
        "delta": config.privacy.target_delta,
        "mechanism": asdict(one_run.spend),
        "audited_epsilon": bound.epsilon,
        "confidence": settings.confidence,
        "largest_possible_bound": one_run.largest_bound,
        "num_canaries": bound.num_canaries,
        "num_guesses": bound.num_guesses,
        "num_correct": bound.num_correct,
        "contradicts_claim": one_run.contradicts_claim,
        "membership_examples": membership.num_examples if membership else 0,
        "attacks": {
            name: {"auc": curve.auc, "tpr_at_1_percent_fpr": curve.tpr_at(0.01)}
            for name, curve in _curves(one_run, membership).items()
        },
    }
