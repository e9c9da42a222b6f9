"""docker-compose.yml without Docker: its services run as processes with TLS and node authentication."""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from chat_model import save_chat_model
from compose_processes import ROOT, Compose, running
from factors import weight_updates
from flwr.app import Context, RecordDict
from loopback import free_ports, wait_until
from site_data import FILES, write_site_data

from fedsvd.cli import main
from fedsvd.compat.flower import parse_node_config
from fedsvd.launch import load_apps
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.privacy.ledger import Ledger
from fedsvd.runs.folder import read_rows

pytestmark = pytest.mark.slow
RUN = ["experiment=smoke", "plots=false", "data=node", "data.labels=[poor,fine]", "federation.weighting=uniform"]
# Starting ten processes, and then one for each message, takes long on a busy machine.
RUN += ["federation.connect_timeout_s=600"]
PLAIN = ["privacy=none", "train.head=private", "federation.num_clients=3"]
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Start what ``docker compose up`` starts, with keys from scripts/certs and the data of three sites.

    The last site answers messages without a trainer.
    """
    folder = tmp_path_factory.mktemp("compose")
    certs = folder / "certs"
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(certs), "--nodes", "4"]
    subprocess.run(command, check=True, cwd=folder)
    environment = {"FEDSVD_CERTS": str(certs), "SERVER_DATA": str(folder / "server")}
    for number, name in FILES.items():
        write_site_data(folder / f"site-{number}", number)
        more = ("", " max-steps=4", ' text-column="report" label-column="outcome" trainer="none"')[number]
        environment[f"NODE_{number}_DATA"] = str(folder / f"site-{number}")
        environment[f"NODE_{number}_CONFIG"] = (
            f'partition-id={number} ledger="/app/private/ledger.sqlite" data-path="/data/{name}"{more}'
        )
    shutil.copy(folder / "site-0" / "site.csv", folder / "held_out.csv")
    compose = Compose(folder, environment)
    try:
        compose.up()
        yield compose
    finally:
        compose.down()


def submit(federation: Compose, folder: Path, *overrides: str) -> int:
    """Run ``fedsvd train federation=remote``, which copies the run directory from the server's volume."""
    remote = [
        "federation=remote",
        f"federation.superlink=127.0.0.1:{federation.ports['superlink', 8000]}",
        f"federation.root_certificates={federation.folder / 'certs' / 'ca.crt'}",
        f"federation.server_runs={federation.folder / 'volumes' / 'runs'}",
        "federation.fetch='cp -r {remote}/. {local}'",
        f"data.test_path={federation.folder / 'held_out.csv'}",
    ]
    return main(["train", *RUN, *remote, *overrides, f"hydra.run.dir={folder}"])


def run_in_process(federation: Compose, folder: Path) -> None:
    """Run the same in this process, with nodes of the same configuration."""
    overrides = [*RUN, *PLAIN, f"data.test_path={federation.folder / 'held_out.csv'}", f"run_dir={folder}"]
    server_app, client_app = load_apps()
    grid = InProcessGrid(client_app, len(FILES), {"overrides": " ".join(overrides)})
    for number, context in enumerate(grid._contexts.values()):
        command = federation.command(f"supernode-{number}")
        context.node_config.update(parse_node_config(command[command.index("--node-config") + 1]))
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"overrides": " ".join(overrides)}))


def test_real_nodes_give_the_model_and_run_directory_of_a_run_in_process(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote, local = tmp_path / "remote", tmp_path / "local"
    assert submit(federation, remote, *PLAIN) == 0
    output = capsys.readouterr().out
    run_in_process(federation, local)

    updates, expected = weight_updates(remote), weight_updates(local)
    assert updates.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(updates[name], tensor, atol=1e-8, rtol=1e-5)
    assert [row["clients_used"] for row in read_rows(remote / "metrics.jsonl")] == [0, 3, 3]
    # In addition to Hydra's files.
    assert {"overrides.json", "remote.json", "server.log"} <= files(remote) - files(local)
    assert files(local) <= files(remote)
    # The user sees the output of a run in process, without Flower's log.
    assert "round 2/2" in output
    assert "INFO" not in output

    # Resuming a finished run whose files are missing here fetches them without training again.
    shutil.rmtree(remote / "adapter")
    before = json.loads((remote / "remote.json").read_text())
    assert json.loads((remote / "run.json").read_text())["run_id"] == before["run_id"]
    assert main(["train", f"resume={remote}"]) == 0
    assert json.loads((remote / "remote.json").read_text()) == before
    assert files(local) <= files(remote)


def test_private_run_of_a_language_model_is_charged_only_at_the_site_that_took_part(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [f"model.source={save_chat_model(tmp_path / 'model')}", "model=tiny_llama", "data.labels=null"]
    model += ["data.messages_column=messages", "data.label_column=null"]
    run = tmp_path / "run"
    training = ["train.num_rounds=1", "train.local_steps=5", "federation.num_clients=2", "privacy.accountant=rdp"]
    assert submit(federation, run, *model, *training) == 0

    rows = read_rows(run / "metrics.jsonl")
    assert rows[1]["clients_used"] == 1
    # The second site allows fewer steps.
    reason = "LimitError: train.local_steps = 5, but this client allows at most 4."
    assert f"client 1 excluded: {reason}" in capsys.readouterr().out
    assert rows[1]["perplexity"] != rows[0]["perplexity"]

    ledgers = {number: federation.folder / "volumes" / f"node-{number}-private" / "ledger.sqlite" for number in FILES}
    assert [number for number, ledger in ledgers.items() if ledger.exists()] == [0]
    with Ledger.read(ledgers[0]) as ledger:
        assert [entry.server_round for entry in ledger.entries()] == [1]
    [client] = json.loads((run / "privacy.json").read_text())["clients"].values()
    assert client["epsilon"] > 0
    assert client["num_examples"] is None


def test_run_that_fails_on_the_server_fails_here_with_its_log(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(federation, tmp_path, "data.test_path=/no/such/file.csv") == 1
    assert "ended as finished:failed" in capsys.readouterr().err
    assert "'/no/such/file.csv' does not exist" in (tmp_path / "server.log").read_text()


def test_node_without_a_registered_key_is_refused(federation: Compose) -> None:
    command = federation.command("supernode-0")
    unregistered = federation.folder / "certs" / "node-3.key"
    command[command.index("--auth-supernode-private-key") + 1] = str(unregistered)
    # The registered node occupies the configured port.
    command[command.index("--port") + 1] = str(free_ports(1)[0])
    completed = subprocess.run(
        command, env=environment(federation), capture_output=True, text=True, timeout=300, check=False
    )
    output = " ".join((completed.stdout + completed.stderr).split())
    assert completed.returncode != 0
    assert "Failed to initialize the connection to the SuperLink" in output, output
    assert re.search(r'/v1/fleet/activate-node HTTP/1\.1" 4\d\d', federation.log("superlink").read_text()), output


def test_plain_text_and_unknown_certificates_are_refused(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{federation.ports['superlink', 8000]}"
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://{address}/health", timeout=20)
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(tmp_path / "certs"), "--nodes", "1"]
    subprocess.run(command, check=True, cwd=tmp_path)
    for trust in ("null", str(tmp_path / "certs" / "ca.crt")):
        overrides = [f"federation.root_certificates={trust}", *PLAIN]
        assert submit(federation, tmp_path / "run", *overrides) == 1
        assert "flwr run failed" in capsys.readouterr().err


@pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="nginx is not installed")
def test_gateway_forwards_only_the_requests_of_nodes(federation: Compose) -> None:
    assert NGINX is not None
    home, port = federation.home("gateway"), free_ports(1)[0]
    config = federation.file["configs"]["gateway"]["content"].replace("/tmp/", f"{home}/")
    config = federation.translate("gateway", config).replace("listen 8443", f"listen 127.0.0.1:{port}")
    # In the gateway's image nginx starts as an unprivileged user; here it may start as root.
    (home / "gateway.conf").write_text("user root;\n" * (os.getuid() == 0) + config)
    command = [NGINX, "-c", str(home / "gateway.conf"), "-p", str(home), "-g", "daemon off;"]
    node = federation.command("supernode-0")
    node[node.index("--superlink") + 1] = f"127.0.0.1:{port}"
    node[node.index("--auth-supernode-private-key") + 1] = str(federation.folder / "certs" / "node-3.key")
    node[node.index("--port") + 1] = str(free_ports(1)[0])
    registration = [str(ROOT / "scripts" / "register"), "federation", str(federation.folder / "certs" / "node-3.pub")]
    operator = federation.environment | {"FLWR_HOME": str(federation.home("register"))}
    subprocess.run(registration, env=operator, check=True)
    with (
        federation.log("gateway").open("wb") as log,
        running(command, log),
        running(node, log, environment(federation)),
    ):
        wait_until(lambda: http_status(federation, port, "/health") == 200, 180, "the gateway")
        # Access to these would allow starting runs.
        for path in ("/v1/control/list-runs", "/v1/runtime/x", "/docs", "/v1/fleet/../control/list-runs"):
            assert http_status(federation, port, path) == 403
        wait_until(lambda: count_online_nodes(operator) == 4, 180, f"the fourth node; see {federation.log('gateway')}")


def http_status(federation: Compose, port: int, path: str) -> int:
    context = ssl.create_default_context(cafile=str(federation.folder / "certs" / "ca.crt"))
    try:
        with urllib.request.urlopen(f"https://127.0.0.1:{port}{path}", context=context, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


def count_online_nodes(operator: Mapping[str, str]) -> int:
    command = ["flwr", "supernode", "ls", "federation", "--format", "json"]
    output = subprocess.run(command, env=operator, capture_output=True, text=True, check=True).stdout
    return [node["status"] for node in json.loads(output)["nodes"]].count("online")


def environment(federation: Compose) -> Mapping[str, str]:
    home = federation.folder / "homes" / "unregistered"
    return federation.environment | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
