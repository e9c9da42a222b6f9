"""The services of docker-compose.yml on one machine: a run on public data, then on the nodes' own. In this order."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from docker_compose import IMAGE, LEDGER, Project, Run, call, make_certs
from site_reports import NODE_CONFIG, RUN, write_held_out, write_reports

from fedsvd.runs.folder import read_rows

pytestmark = [pytest.mark.docker, pytest.mark.slow]
PUBLIC = ["experiment=smoke", "federation.num_clients=3"]
# Rounds that last long enough to be disturbed within one.
DISTURBED = [
    *PUBLIC, "plots=false", "train.num_rounds=4", "train.local_steps=20", "privacy.accountant=rdp",
    "privacy.noise_multiplier=2", "privacy.target_epsilon=100",
    "federation.round_timeout_s=240", "federation.retries=0",
]  # fmt: skip
SMALL_VOLUMES = """
services:
  superexec-serverapp: {volumes: ["small-runs:/app/runs"]}
  superexec-clientapp-0: {volumes: ["small-private:/app/private"]}
volumes:
  small-runs: &small {driver_opts: {type: tmpfs, device: tmpfs, o: "size=4m,mode=700,uid=USER"}}
  small-private: *small
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, user_id: str) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    environment = {
        "FEDSVD_CERTS": str(make_certs(folder, "127.0.0.2")),
        "FEDSVD_UID": user_id,
        # Another service may use the port on 127.0.0.1.
        "FEDSVD_BIND": "127.0.0.2",
        "SERVER_DATA": str(write_held_out(folder)),
        **{f"NODE_{number}_DATA": str(write_reports(folder, number)) for number in range(3)},
    }
    project = Project("fedsvd-docker-tests", environment)
    project.down("--volumes")
    try:
        project.up()
        yield project
    finally:
        project.down("--volumes")


def with_own_data(project: Project) -> Project:
    own = {f"NODE_{number}_CONFIG": NODE_CONFIG.format(number=number) for number in range(3)}
    return replace(project, environment={**project.environment, **own})


def test_image_is_small_and_its_user_compiles_nothing() -> None:
    base = os.environ.get("BASE_IMAGE", "python:3.11-slim")
    sizes = [json.loads(call("docker", "image", "inspect", name))[0]["Size"] for name in (IMAGE, base)]
    # python:3.11-slim has 0.13 GB.
    assert sizes[0] - sizes[1] < 1.45e9
    check = (
        "import torch, peft, fedsvd.cli, os; print([os.path.exists(m.__cached__) for m in (torch, peft, fedsvd.cli)])"
    )
    assert call("docker", "run", "--rm", IMAGE, "python", "-c", check).strip() == "[True, True, True]"


def test_run_on_public_data(project: Project, tmp_path: Path) -> None:
    run = Run(project, tmp_path / "run", *PUBLIC)
    assert run.end() == 0, run.output
    assert [row["clients_used"] for row in read_rows(run.folder / "metrics.jsonl")] == [0, 3, 3]


def test_run_survives_the_death_of_superlink_executor_and_trainer(project: Project, tmp_path: Path) -> None:
    # The charges of the run before count, too.
    charged = {number: project.wait_for_charges(number, 0) for number in range(3)}
    run = Run(project, tmp_path / "run", *DISTURBED)
    try:
        project.wait_for_charges(0, charged[0] + 1)
        project.kill("superlink", "flower-superlink")
        run.wait_for("round 1/4")
        project.wait_for_charges(1, charged[1] + 2)
        project.kill("superexec-clientapp-1", "flower-superexec")
        run.wait_for("round 2/4")
        project.wait_for_charges(2, charged[2] + 3)
        project.kill("superexec-clientapp-2", "fedsvd.trainer.service")
        assert run.end() == 0, run.output
    finally:
        run.stop()
    rows = read_rows(run.folder / "metrics.jsonl")
    assert [row["server_round"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["clients_used"] for row in rows[1:]] == [3, 2, 2, 3]
    # Flower may notice that the process has ended before the request times out.
    assert re.search("no reply within|stopped responding", rows[2]["clients_refused"]["1"])
    assert "TrainerError: the node's trainer" in rows[3]["clients_refused"]["2"]
    # The engine has restarted what ended, and only that.
    restarts = {service: project.inspect(service)["RestartCount"] for service in project.health()}
    assert {service for service, count in restarts.items() if count} == {"superlink", "superexec-clientapp-1"}


def test_own_data_need_a_new_account_after_public_ones(project: Project, tmp_path: Path) -> None:
    own = with_own_data(project)
    own.up()
    declined = Run(own, tmp_path / "declined", *RUN, "train.num_rounds=1")
    assert declined.end() == 1, declined.output
    assert "BudgetExceededError" in declined.output
    # The reason has numbers that tell how many examples a node has.
    assert "start a new account" not in declined.output
    assert "start a new account" in own("logs", "superexec-clientapp-0")

    for number in range(3):
        reason = "public data until now, our own from here on"
        command = ["fedsvd", "privacy", "ledger", LEDGER, "--new-account", reason]
        own("run", "--rm", "--no-deps", f"superexec-clientapp-{number}", *command)
    run = Run(own, tmp_path / "run", *RUN, "privacy.target_epsilon=3")
    assert run.end() == 0, run.output
    assert [row["clients_used"] for row in read_rows(run.folder / "metrics.jsonl")] == [0, 3, 3]


def test_down_and_up_lose_nothing(project: Project, tmp_path: Path) -> None:
    own = with_own_data(project)
    before = state(own, tmp_path)
    assert len(before[-1]) >= 3
    own.down()
    own.up()
    assert state(own, tmp_path) == before


def state(project: Project, folder: Path) -> list[object]:
    """Return what the ledgers, the volume of runs and the SuperLink have."""
    certificate = Path(project.environment["FEDSVD_CERTS"]) / "ca.crt"
    config = f'[superlink.it]\naddress = "127.0.0.2:8000"\nroot-certificates = "{certificate}"\n'
    (folder / "config.toml").write_text(config)
    environment = project.variables | {"FLWR_HOME": str(folder)}
    listed = json.loads(call("flwr", "ls", "it", "--format", "json", env=environment))["runs"]
    ledgers = [project.ledger(number) for number in range(3)]
    return [*ledgers, project.execute("superexec-serverapp", "ls", "/app/runs"), [run["run-id"] for run in listed]]


def test_full_volume_ends_the_run_or_excludes_the_node(project: Project, tmp_path: Path, user_id: str) -> None:
    override = tmp_path / "small.yml"
    override.write_text(SMALL_VOLUMES.replace("USER", user_id))
    small = replace(with_own_data(project), override=override)
    small.up()
    small.fill("superexec-serverapp", "/app/runs")
    failed = Run(small, tmp_path / "failed", *RUN, "train.num_rounds=1")
    assert failed.end() == 1, failed.output
    assert "No space left on device" in failed.output

    small.execute("superexec-serverapp", "rm", "/app/runs/filler")
    small.fill("superexec-clientapp-0", "/app/private")
    run = Run(small, tmp_path / "run", *RUN, "privacy.target_epsilon=1")
    try:
        run.wait_for("round 1/2")
        small.execute("superexec-clientapp-0", "rm", "/app/private/filler")
        assert run.end() == 0, run.output
    finally:
        run.stop()
    rows = read_rows(run.folder / "metrics.jsonl")
    assert list(rows[1]["clients_refused"]) == ["0"]
    assert "LedgerError" in rows[1]["clients_refused"]["0"]
    assert rows[1]["clients_used"] == 2
