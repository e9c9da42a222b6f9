"""Dockerfile, docker-compose.yml and scripts/certs, checked as far as they can be without a Docker engine."""

import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.common.config import parse_config_args
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from client.node_limits import read_limits

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")
LONG_RUNNING = ("superlink", "supernode", "superexec")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def values(name: str) -> list[str]:
    return [value for key, value in instructions() if key == name]


def compose() -> dict[str, Any]:
    text = DEFAULT.sub(lambda match: match[2], (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "certs"
    make_certs(folder, "--host", "fed.example.org", "--host", "192.0.2.7")
    return folder


def make_certs(folder: Path, *words: str) -> None:
    # Not by scripts/certs itself, which would leave an .env in the checkout.
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(folder), *words]
    subprocess.run(command, check=True, cwd=folder.parent, capture_output=True)


def test_every_instruction_of_the_dockerfile_is_one() -> None:
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert {name for name, _ in instructions()} <= known
    for script in values("RUN"):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_the_image_has_a_python_that_the_project_allows() -> None:
    [base] = values("FROM")
    name, _, tag = base.partition(":")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert name == "python"
    assert Version(tag.removesuffix("-slim")) in SpecifierSet(project["requires-python"])


def test_what_the_dockerfile_copies_is_under_version_control() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for line in values("COPY"):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert any(path == source or path.startswith(f"{source}/") for path in tracked), source


def test_the_image_installs_locked_versions_and_the_wheel_finds_its_parts() -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    install = " ".join(values("RUN"))
    assert len([line for line in lock if line.startswith("uv==")]) == 1
    assert "--constraint requirements.lock" in install
    assert "--requirement pyproject.toml" in install
    # All that pyproject.toml puts into the wheel must have been copied when the wheel is built.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {source for line in values("COPY") for source in shlex.split(line)[:-1]}
    assert {*build["packages"], *build["force-include"]} <= copied


@pytest.mark.parametrize("service", ["superlink", "superexec-clientapp-0-gpu"])
def test_the_builds_of_torch_are_ones_that_uv_knows(service: str) -> None:
    said = subprocess.run(
        [Path(sys.executable).with_name("uv"), "pip", "install", "--help"], capture_output=True, text=True, check=True
    ).stdout
    # However wide the terminal is taken to be.
    listed = " ".join(said.split()).partition("--torch-backend <")[2].partition("possible values:")[2].partition("]")[0]
    backends = re.split(r"[,\s]+", listed)
    assert services()[service]["build"]["args"]["TORCH_BACKEND"] in backends


def test_arguments_of_image_and_compose_are_the_same() -> None:
    taken = {value.split("=")[0] for value in values("ARG")}
    built = [service for service in services().values() if service["image"].startswith("fedsvd:")]
    assert all(set(service["build"]["args"]) == taken for service in built)
    assert len(built) == len(services()) - 1


def test_nothing_runs_as_root_or_with_more_rights_than_it_needs() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("CMD")
    assert values("USER") == ["app"]
    assert "useradd --uid" in " ".join(values("RUN"))
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name


def test_every_service_is_watched_and_comes_back() -> None:
    for name, service in services().items():
        if name == "register":
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name


def test_services_name_what_there_is() -> None:
    found = compose()
    for name, service in found["services"].items():
        assert set(service["networks"]) <= set(found["networks"]), name
        assert set(service.get("depends_on", [])) <= set(found["services"]), name
        for config in service.get("configs", []):
            assert config["source"] in found["configs"], name
        given = [item["source"] if isinstance(item, dict) else item for item in service.get("secrets", [])]
        assert set(given) <= set(found["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in found["volumes"], name


def test_what_volumes_are_mounted_on_belongs_to_the_containers_user() -> None:
    [made] = [script for script in values("RUN") if "install --directory" in script]
    targets = {volume.split(":")[1] for service in services().values() for volume in service.get("volumes", [])}
    # /data is read alone, and belongs to whoever brings it.
    assert targets - {"/data"} <= set(re.findall(r"/app/\w+", made))
    assert "--owner app --mode 700" in made


def test_every_command_is_one_that_the_image_has() -> None:
    scripts = Path(sys.executable).parent
    for name, service in services().items():
        program = service["command"][0]
        if name == "gateway":
            assert (service["image"].split(":")[0], program) == ("nginxinc/nginx-unprivileged", "nginx")
            continue
        assert (ROOT / program).is_file() or (scripts / program).is_file(), name


def test_each_client_has_its_own_key_volume_ledger_and_network() -> None:
    nodes = [name for name in services() if name.startswith("supernode-")]
    assert len(nodes) == 3
    private = []
    for node in nodes:
        number = node.removeprefix("supernode-")
        supernode, executor = services()[node], services()[f"superexec-clientapp-{number}"]
        words = supernode["command"]
        config = parse_config_args([words[words.index("--node-config") + 1]], flatten=False)
        assert config["partition-id"] == int(number)
        read_limits(config)
        volumes = {line.split(":")[1]: line.split(":")[0] for line in executor["volumes"]}
        assert str(Path(str(config["ledger"])).parent) in volumes
        assert volumes["/app/private"] == f"node-{number}-private"
        # The server's network ends at the SuperNode.
        assert executor["networks"] == [f"node-{number}"]
        assert f"node_{number}" not in executor["secrets"]
        private += [volumes["/app/private"], volumes["/app/cache"], volumes["/data"]]
    assert len(set(private)) == 9


def test_gpu_twins_differ_in_image_and_devices_alone() -> None:
    twins = [name for name in services() if name.endswith("-gpu")]
    assert len(twins) == 4
    for name in twins:
        twin, service = services()[name], services()[name.removesuffix("-gpu")]
        assert twin.keys() - service.keys() == {"profiles", "deploy"}
        assert {key for key in service if twin[key] != service[key]} == {"image", "build"}
        assert twin["profiles"] == ["gpu"]


def test_traffic_is_encrypted_and_the_port_closed_to_others_by_default() -> None:
    superlink = services()["superlink"]
    assert superlink["ports"] == ["127.0.0.1:8000:8000"]
    assert [name for name, service in services().items() if "ports" in service] == ["superlink", "gateway"]
    assert "--enable-supernode-auth" in superlink["command"]
    insecure = {name.removesuffix("-gpu") for name, service in services().items() if "--insecure" in service["command"]}
    # Within a network of two containers, under a secret of theirs.
    assert insecure == {f"superexec-clientapp-{number}" for number in range(3)}


def test_the_gateway_lets_nodes_in_and_nobody_who_gives_orders() -> None:
    content = compose()["configs"]["gateway"]["content"]
    passed = re.findall(r"location (.+) \{ proxy_pass https://superlink:8000; \}", content)
    assert passed == ["/v1/fleet/", "= /health"]
    assert "location / { return 403; }" in content
    assert "proxy_ssl_verify on;" in content
    # A dollar sign would be taken for one of compose's own variables.
    assert "$" not in content


def test_certs_makes_every_secret_that_compose_wants(certs: Path) -> None:
    for secret in compose()["secrets"].values():
        path = certs / Path(secret["file"]).name
        assert path.is_file(), path
        private = path.suffix in (".key", ".secret")
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if private else 0o644), path


def test_the_servers_certificate_holds_for_its_names_and_is_signed(certs: Path) -> None:
    authority = x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((certs / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["superlink", "localhost", "fed.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "192.0.2.7"]


def test_a_node_s_public_key_is_that_of_its_private_one(certs: Path) -> None:
    private = serialization.load_ssh_private_key((certs / "node-1.key").read_bytes(), password=None)
    public = serialization.load_ssh_public_key((certs / "node-1.pub").read_bytes())
    assert private.public_key() == public
    assert (certs / "node-0.pub").read_bytes() != (certs / "node-1.pub").read_bytes()


def test_certs_keeps_what_is_there_adds_nodes_and_renews_when_asked(certs: Path) -> None:
    before = {path.name: path.read_bytes() for path in certs.iterdir()}
    make_certs(certs, "--nodes", "4", "--renew")
    after = {path.name: path.read_bytes() for path in certs.iterdir()}
    assert after.keys() - before.keys() == {"node-3.key", "node-3.pub", "node-3.secret"}
    assert {name for name in before if after[name] != before[name]} == {"server.key", "server.crt"}
