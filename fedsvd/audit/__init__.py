"""The empirical audit: what an attacker can really tell of one client's examples, beside what is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedsvd.audit.membership_attack import MembershipAttack, attack_membership
from fedsvd.audit.one_run import OneRunAudit, audit_one_run
from fedsvd.config import Config
from fedsvd.config.audit import AuditConfig
from fedsvd.config.compose import to_yaml
from fedsvd.errors import ConfigError
from fedsvd.launch import check_config
from fedsvd.methods import build_method
from fedsvd.privacy.membership import Roc
from fedsvd.report.roc import plot_roc
from fedsvd.runs.folder import RunFolder, write_json, write_text

__all__ = ["check_audit", "run_audit"]


def check_audit(config: Config, settings: AuditConfig) -> None:
    """Raise what can be known to be wrong before anything is loaded.

    Raises:
        ConfigError: Privacy of another unit, a client that is not there, or what `fedsvd.launch.check_config` raises.
    """
    check_config(config)
    if config.privacy.name != "dp_sgd":
        raise ConfigError(
            f"privacy.name = {config.privacy.name!r} makes no claim for an example, so there is none to audit: set "
            "privacy=dp_sgd. To see an audit fail, break that with audit.sabotage=no_noise."
        )
    if config.privacy.noise_share:
        raise ConfigError(
            "privacy.noise_share = True gives each update a share of the noise, and claims its ε for the secure sum "
            "alone, while an audit attacks one client's updates: set privacy.noise_share=false."
        )
    if build_method(config.method).traits.personal or config.federation.client_ranks is not None:
        raise ConfigError(
            f"method.name = {config.method['name']} with federation.client_ranks = {config.federation.client_ranks} "
            "gives clients models of their own, and an audit trains one model that all share: take another method, "
            "and federation.client_ranks=null."
        )
    if settings.partition_id >= config.federation.num_clients:
        raise ConfigError(
            f"audit.partition_id = {settings.partition_id} is not a client: federation.num_clients = "
            f"{config.federation.num_clients}, so give 0 to {config.federation.num_clients - 1}."
        )
    if config.resume is not None:
        raise ConfigError(f"resume = {config.resume!r} is not possible: an audit starts anew. Leave the key out.")


def run_audit(config: Config, settings: AuditConfig, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Attack one client of a federation, and leave ``audit.json`` and a plot in a folder.

    Args:
        config: The run.
        settings: Whom to attack, and how.
        folder: The run's folder.
        tell: Called with a line before each part.

    Returns:
        What is in ``audit.json``.

    Raises:
        ConfigError: See `check_audit`.
        PrivacyError: More canaries than trained numbers.
        RunError: Training diverged.
    """
    check_audit(config, settings)
    started = time.perf_counter()
    # The coins are the secret that the attack guesses: they come from the operating system, never from the seed.
    rng = np.random.default_rng()
    tell(f"one run with {settings.num_canaries} canaries …")
    one_run = audit_one_run(config, settings, rng)
    membership = None
    if settings.num_shadow_models:
        membership = attack_membership(
            config, settings, rng, lambda done, of: tell(f"membership: training {done + 1} of {of} …")
        )
    found = _summary(config, settings, one_run, membership) | {"seconds": time.perf_counter() - started}
    run_folder = RunFolder(folder)
    write_text(run_folder.config, to_yaml(config))
    write_json(run_folder.audit, found)
    curves = _curves(one_run, membership)
    plot_roc(curves, one_run.claimed_epsilon, config.privacy.target_delta, run_folder.roc_plot)
    return found


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
