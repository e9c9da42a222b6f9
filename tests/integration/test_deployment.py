"""docker-compose.yml without Docker: its services as processes, with TLS and node authentication, and runs on them."""

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

import pandas
import pytest
import torch
from compose_processes import ROOT, Compose, running
from factors import products
from flwr.app import Context, RecordDict
from flwr.common.config import parse_config_args
from loopback import free_ports, wait_until

from fedsvd.cli import main
from fedsvd.launch import load_apps
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.privacy.ledger import Ledger
from fedsvd.runs.folder import read_rows

pytestmark = pytest.mark.slow
RUN = ["experiment=smoke", "data=node", "data.labels=[poor,fine]", "federation.weighting=uniform"]
# A busy machine takes its time to start ten processes, and then one for each message.
RUN += ["federation.connect_timeout_s=600"]
OPEN = ["privacy=none", "train.head=private", "federation.num_clients=3"]
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
FILES = {0: "site.csv", 1: "site.jsonl", 2: "site.parquet"}


def site(folder: Path, number: int) -> Path:
    """One site's own file: of its own size, in its own format, at the last one with columns of its own."""
    rows = [
        (f"case {number}.{i}: the stay was {word}", word) for i in range(20 + 8 * number) for word in ("fine", "poor")
    ]
    frame = pandas.DataFrame(rows, columns=["report", "outcome"] if number == 2 else ["text", "label"])
    folder.mkdir(parents=True)
    path = folder / FILES[number]
    if number == 0:
        frame.to_csv(path, index=False)
    elif number == 1:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """All that ``docker compose up`` starts, with keys of scripts/certs and three sites' own files."""
    folder = tmp_path_factory.mktemp("compose")
    certs = folder / "certs"
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(certs), "--nodes", "4"]
    subprocess.run(command, check=True, cwd=folder)
    environment = {"FEDSVD_CERTS": str(certs), "SERVER_DATA": str(folder / "server")}
    for number, name in FILES.items():
        site(folder / f"site-{number}", number)
        columns = ' text-column="report" label-column="outcome"' if number == 2 else ""
        environment[f"NODE_{number}_DATA"] = str(folder / f"site-{number}")
        environment[f"NODE_{number}_CONFIG"] = (
            f'partition-id={number} ledger="/app/private/ledger.sqlite" data-path="/data/{name}"{columns}'
        )
    shutil.copy(folder / "site-0" / "site.csv", folder / "held_out.csv")
    compose = Compose(folder, environment)
    try:
        compose.up()
        yield compose
    finally:
        compose.down()


def submit(federation: Compose, folder: Path, *words: str) -> int:
    """``fedsvd train federation=remote``, whose folder comes back from the server's volume."""
    way = [
        "federation=remote",
        f"federation.superlink=127.0.0.1:{federation.ports['superlink', 8000]}",
        f"federation.root_certificates={federation.folder / 'certs' / 'ca.crt'}",
        f"federation.server_runs={federation.folder / 'volumes' / 'runs'}",
        "federation.fetch='cp -r {remote}/. {local}'",
        f"data.test_path={federation.folder / 'held_out.csv'}",
    ]
    return main(["train", *RUN, *way, *words, f"hydra.run.dir={folder}"])


def run_here(federation: Compose, folder: Path) -> None:
    """The same run in this process, with nodes that are configured alike."""
    words = [*RUN, *OPEN, f"data.test_path={federation.folder / 'held_out.csv'}", f"run_dir={folder}"]
    server_app, client_app = load_apps()
    grid = InProcessGrid(client_app, len(FILES), {"overrides": " ".join(words)})
    for number, context in enumerate(grid._contexts.values()):
        command = federation.command(f"supernode-{number}")
        context.node_config.update(parse_config_args([command[command.index("--node-config") + 1]], flatten=False))
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {"overrides": " ".join(words)}))


def test_a_run_on_real_nodes_gives_the_model_and_the_folder_of_one_in_this_process(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    assert submit(federation, far, *OPEN) == 0
    said = capsys.readouterr().out
    run_here(federation, near)

    found, expected = products(far), products(near)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-5)
    assert [row["clients_used"] for row in read_rows(far / "metrics.jsonl")] == [0, 3, 3]
    # Beside Hydra's own.
    assert {"overrides.json", "remote.json", "server.log"} <= files(far) - files(near)
    assert files(near) <= files(far)
    # What a user sees is what a run in this process would print, without Flower's own lines.
    assert "round 2/2" in said
    assert "INFO" not in said

    # Done, and not here (any more): the folder is fetched, and nothing is trained again.
    shutil.rmtree(far / "adapter")
    before = json.loads((far / "remote.json").read_text())
    assert main(["train", f"resume={far}"]) == 0
    assert json.loads((far / "remote.json").read_text()) == before
    assert files(near) <= files(far)


def test_a_private_run_is_charged_at_the_site_that_took_part_and_nowhere_else(
    federation: Compose, tmp_path: Path
) -> None:
    assert submit(federation, tmp_path, "train.num_rounds=1", "federation.num_clients=1") == 0

    ledgers = {number: federation.folder / "volumes" / f"node-{number}-private" / "ledger.sqlite" for number in FILES}
    assert [number for number, ledger in ledgers.items() if ledger.exists()] == [0]
    with Ledger.read(ledgers[0]) as ledger:
        assert [entry.server_round for entry in ledger.entries()] == [1]
    [told] = json.loads((tmp_path / "privacy.json").read_text())["clients"].values()
    assert told["epsilon"] > 0
    assert told["num_examples"] is None


def test_a_run_that_fails_on_the_server_fails_here_and_says_why(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(federation, tmp_path, "data.test_path=/no/such/file.csv") == 1
    assert "ended as finished:failed" in capsys.readouterr().err
    assert "'/no/such/file.csv' does not exist" in (tmp_path / "server.log").read_text()


def test_a_node_without_a_registered_key_is_refused(federation: Compose) -> None:
    words = federation.command("supernode-0")
    stranger = federation.folder / "certs" / "node-3.key"
    words[words.index("--auth-supernode-private-key") + 1] = str(stranger)
    # A port of its own: the other node is there.
    words[words.index("--port") + 1] = str(free_ports(1)[0])
    done = subprocess.run(words, env=environment(federation), capture_output=True, text=True, timeout=300, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "Failed to initialize the connection to the SuperLink" in said, said
    assert re.search(r'/v1/fleet/activate-node HTTP/1\.1" 4\d\d', federation.log("superlink").read_text()), said


def test_plain_text_and_strangers_certificates_are_refused(
    federation: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{federation.ports['superlink', 8000]}"
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://{address}/health", timeout=20)
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(tmp_path / "certs"), "--nodes", "1"]
    subprocess.run(command, check=True, cwd=tmp_path)
    for trust in ("null", str(tmp_path / "certs" / "ca.crt")):
        words = [f"federation.root_certificates={trust}", *OPEN]
        assert submit(federation, tmp_path / "run", *words) == 1
        assert "flwr run failed" in capsys.readouterr().err


@pytest.mark.skipif(NGINX is None and "CI" not in os.environ, reason="nginx is not installed")
def test_the_gateway_lets_nodes_through_and_nothing_else(federation: Compose) -> None:
    assert NGINX is not None
    home, port = federation.home("gateway"), free_ports(1)[0]
    config = federation.file["configs"]["gateway"]["content"].replace("/tmp/", f"{home}/")
    config = federation.translate("gateway", config).replace("listen 8443", f"listen 127.0.0.1:{port}")
    # The image of compose's gateway runs as one user from the start; here the first process may be root's.
    (home / "gateway.conf").write_text("user root;\n" * (os.getuid() == 0) + config)
    command = [NGINX, "-c", str(home / "gateway.conf"), "-p", str(home), "-g", "daemon off;"]
    node = federation.command("supernode-0")
    node[node.index("--superlink") + 1] = f"127.0.0.1:{port}"
    node[node.index("--auth-supernode-private-key") + 1] = str(federation.folder / "certs" / "node-3.key")
    node[node.index("--port") + 1] = str(free_ports(1)[0])
    register = [str(ROOT / "scripts" / "register"), "federation", str(federation.folder / "certs" / "node-3.pub")]
    operator = federation.environment | {"FLWR_HOME": str(federation.home("register"))}
    subprocess.run(register, env=operator, check=True)
    with (
        federation.log("gateway").open("wb") as log,
        running(command, log),
        running(node, log, environment(federation)),
    ):
        wait_until(lambda: answer(federation, port, "/health") == 200, 180, "the gateway")
        # Whoever could reach these could start runs.
        for path in ("/v1/control/list-runs", "/v1/runtime/x", "/docs", "/v1/fleet/../control/list-runs"):
            assert answer(federation, port, path) == 403
        wait_until(lambda: online(operator) == 4, 180, f"the fourth node; see {federation.log('gateway')}")


def answer(federation: Compose, port: int, path: str) -> int:
    context = ssl.create_default_context(cafile=str(federation.folder / "certs" / "ca.crt"))
    try:
        with urllib.request.urlopen(f"https://127.0.0.1:{port}{path}", context=context, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


def online(operator: Mapping[str, str]) -> int:
    command = ["flwr", "supernode", "ls", "federation", "--format", "json"]
    said = subprocess.run(command, env=operator, capture_output=True, text=True, check=True).stdout
    return [node["status"] for node in json.loads(said)["nodes"]].count("online")


def environment(federation: Compose) -> Mapping[str, str]:
    home = federation.folder / "homes" / "stranger"
    return federation.environment | {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
