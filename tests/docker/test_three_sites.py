"""Three sites in compose projects of their own, which reach only the server's gateway, as in docs/deployment.md."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker_compose import Project, Run, call, gateway_image, make_certs
from site_reports import NODE_CONFIG, RUN, write_held_out, write_reports

from fedsvd.runs.folder import read_rows

pytestmark = [pytest.mark.docker, pytest.mark.slow]
HOST = "fed.example.org"
SERVICES = ("supernode-0", "superexec-clientapp-0")
ROUND_TIMEOUT_S = 200


@dataclass(frozen=True)
class Federation:
    server: Project
    sites: list[Project]

    def connect(self, number: int) -> None:
        """Let a site reach the gateway by the server's name; it has no other way to the server."""
        network, gateway = f"{self.sites[number].name}_server", self.server.container("gateway")
        call("docker", "network", "connect", "--alias", HOST, network, gateway)

    def disconnect(self, number: int) -> None:
        network, gateway = f"{self.sites[number].name}_server", self.server.container("gateway")
        call("docker", "network", "disconnect", network, gateway)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, user_id: str) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("sites")
    certs = make_certs(folder, HOST, "127.0.0.3")
    environment = {
        "FEDSVD_CERTS": str(certs),
        "FEDSVD_UID": user_id,
        "FEDSVD_BIND": "127.0.0.3",
        "FEDSVD_GATEWAY": "127.0.0.3:8443",
        "GATEWAY_IMAGE": gateway_image(),
        "SERVER_DATA": str(write_held_out(folder)),
    }
    server = Project("fedsvd-docker-server", environment)
    sites = [make_site(folder, certs, number, user_id) for number in range(3)]
    federation = Federation(server, sites)
    remove(federation)
    try:
        server("--profile", "gateway", "up", "--detach", "--no-build", "superlink", "gateway", "register",
               "superexec-serverapp")  # fmt: skip
        server.wait_until_healthy()
        for number, site in enumerate(sites):
            site("up", "--detach", "--no-build", "--no-deps", "supernode-0")
            federation.connect(number)
        for site in sites:
            site.up(*SERVICES)
        yield federation
    finally:
        remove(federation)


def make_site(folder: Path, certs: Path, number: int, user_id: str) -> Project:
    """Give a site only what deployment.md says that it has, under the number 0."""
    own = folder / f"certs-{number}"
    own.mkdir()
    shutil.copy(certs / "ca.crt", own)
    for suffix in ("key", "pub", "secret"):
        shutil.copy(certs / f"node-{number}.{suffix}", own / f"node-0.{suffix}")
        shutil.chown(own / f"node-0.{suffix}", int(user_id), int(user_id))
    environment = {
        "FEDSVD_CERTS": str(own),
        "FEDSVD_UID": user_id,
        "SUPERLINK": f"{HOST}:8443",
        "NODE_0_DATA": str(write_reports(folder, number)),
        "NODE_0_CONFIG": NODE_CONFIG.format(number=number),
    }
    return Project(f"fedsvd-docker-site-{number}", environment)


def remove(federation: Federation) -> None:
    for site in federation.sites:
        # The network of a site goes last, when the gateway has left it.
        site("rm", "--force", "--stop", *SERVICES, check=False)
    federation.server.down("--volumes")
    for site in federation.sites:
        site.down("--volumes")


def test_cut_shorter_than_the_deadline_costs_nothing_and_a_longer_one_costs_one_site_a_round(
    federation: Federation, tmp_path: Path
) -> None:
    timeout = f"federation.round_timeout_s={ROUND_TIMEOUT_S}"
    run = Run(federation.server, tmp_path / "run", *RUN, timeout, "train.num_rounds=8")
    try:
        run.wait_for("round 1/8")
        federation.disconnect(1)
        time.sleep(10)
        federation.connect(1)
        run.wait_for("round 2/8")
        federation.disconnect(2)
        run.wait_for("round 3/8")
        federation.connect(2)
        assert run.end() == 0, run.output
    finally:
        run.stop()
    rows = read_rows(run.folder / "metrics.jsonl")
    used = [row["clients_used"] for row in rows]
    assert used[:4] == [0, 3, 3, 2]
    assert list(rows[3]["clients_refused"]) == ["2"]
    # It is back without anybody's help, after a round or more.
    assert used[-1] == 3
    # The gateway forwards nothing but the requests of nodes.
    probe = ["scripts/healthy", f"https://{HOST}:8443/health", "/run/secrets/ca"]
    federation.sites[0].execute("supernode-0", *probe)
    probe[1] = f"https://{HOST}:8443/v1/control/list-runs"
    with pytest.raises(RuntimeError):
        federation.sites[0].execute("supernode-0", *probe)
