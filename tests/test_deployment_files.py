"""Checks of Dockerfile, docker-compose.yml and scripts/certs that need no Docker engine."""

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
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from client.node_limits import read_limits
from fedsvd.flower_private import parse_node_config

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, with continued lines joined and comments removed."""
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
    result: dict[str, dict[str, Any]] = compose()["services"]
    return result


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "certs"
    make_certs(folder, "--host", "fed.example.org", "--host", "192.0.2.7")
    return folder


def make_certs(folder: Path, *arguments: str) -> None:
    # Not with scripts/certs itself, which would write an .env file to the checkout.
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(folder), *arguments]
    subprocess.run(command, check=True, cwd=folder.parent, capture_output=True)


def test_dockerfile_instructions_are_valid() -> None:
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert {name for name, _ in instructions()} <= known
    for script in values("RUN"):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_image_has_a_supported_python_version() -> None:
    [base] = values("FROM")
    name, _, tag = base.partition(":")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert name == "python"
    assert Version(tag.removesuffix("-slim")) in SpecifierSet(project["requires-python"])


def test_files_copied_by_the_dockerfile_are_tracked() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for line in values("COPY"):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert any(path == source or path.startswith(f"{source}/") for path in tracked), source


def test_image_installs_locked_versions_and_has_all_files_of_the_wheel() -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    install = " ".join(values("RUN"))
    assert len([line for line in lock if line.startswith("uv==")]) == 1
    assert "--constraint requirements.lock" in install
    assert "--requirement pyproject.toml" in install
    # All files that pyproject.toml puts into the wheel must be copied before the wheel is built.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {source for line in values("COPY") for source in shlex.split(line)[:-1]}
    assert {*build["packages"], *build["force-include"]} <= copied


@pytest.mark.parametrize("service", ["superlink", "superexec-clientapp-0-gpu"])
def test_torch_builds_are_known_to_uv(service: str) -> None:
    help_text = subprocess.run(
        [Path(sys.executable).with_name("uv"), "pip", "install", "--help"], capture_output=True, text=True, check=True
    ).stdout
    # Independent of the terminal width.
    listed = (
        " ".join(help_text.split()).partition("--torch-backend <")[2].partition("possible values:")[2].partition("]")[0]
    )
    backends = re.split(r"[,\s]+", listed)
    assert services()[service]["build"]["args"]["TORCH_BACKEND"] in backends


def test_build_arguments_of_dockerfile_and_compose_match() -> None:
    declared = {value.split("=")[0] for value in values("ARG")}
    built = [service for service in services().values() if service["image"].startswith("fedsvd:")]
    assert all(set(service["build"]["args"]) == declared for service in built)
    assert len(built) == len(services()) - 1


def test_services_run_unprivileged() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("CMD")
    assert values("USER") == ["app"]
    assert "useradd --uid" in " ".join(values("RUN"))
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name


def test_services_have_health_checks_and_restart() -> None:
    for name, service in services().items():
        if name == "register":
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name


def test_references_of_services_exist() -> None:
    file = compose()
    for name, service in file["services"].items():
        assert set(service["networks"]) <= set(file["networks"]), name
        assert set(service.get("depends_on", [])) <= set(file["services"]), name
        for config in service.get("configs", []):
            assert config["source"] in file["configs"], name
        secrets = [item["source"] if isinstance(item, dict) else item for item in service.get("secrets", [])]
        assert set(secrets) <= set(file["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in file["volumes"], name


def test_mount_points_of_volumes_belong_to_the_container_user() -> None:
    [install] = [script for script in values("RUN") if "install --directory" in script]
    targets = {volume.split(":")[1] for service in services().values() for volume in service.get("volumes", [])}
    # /data is mounted read-only and belongs to its owner on the host.
    assert targets - {"/data"} <= set(re.findall(r"/app/\w+", install))
    assert "--owner app --mode 700" in install


def test_commands_exist_in_the_image() -> None:
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
        command = supernode["command"]
        config = parse_node_config(command[command.index("--node-config") + 1])
        assert config["partition-id"] == int(number)
        read_limits(config)
        volumes = {line.split(":")[1]: line.split(":")[0] for line in executor["volumes"]}
        assert str(Path(str(config["ledger"])).parent) in volumes
        assert volumes["/app/private"] == f"node-{number}-private"
        # Only the SuperNode is on the server's network.
        assert executor["networks"] == [f"node-{number}"]
        assert f"node_{number}" not in executor["secrets"]
        private += [volumes["/app/private"], volumes["/app/cache"], volumes["/data"]]
    assert len(set(private)) == 9


def test_gpu_services_differ_only_in_image_and_devices() -> None:
    gpu_services = [name for name in services() if name.endswith("-gpu")]
    assert len(gpu_services) == 4
    for name in gpu_services:
        gpu_service, service = services()[name], services()[name.removesuffix("-gpu")]
        assert gpu_service.keys() - service.keys() == {"profiles", "deploy"}
        assert {key for key in service if gpu_service[key] != service[key]} == {"image", "build"}
        assert gpu_service["profiles"] == ["gpu"]


def test_traffic_is_encrypted_and_ports_are_closed_by_default() -> None:
    superlink = services()["superlink"]
    assert superlink["ports"] == ["127.0.0.1:8000:8000"]
    assert [name for name, service in services().items() if "ports" in service] == ["superlink", "gateway"]
    assert "--enable-supernode-auth" in superlink["command"]
    insecure = {name.removesuffix("-gpu") for name, service in services().items() if "--insecure" in service["command"]}
    # Only on a network of two containers, which authenticate with a shared secret.
    assert insecure == {f"superexec-clientapp-{number}" for number in range(3)}


def test_gateway_forwards_only_node_requests() -> None:
    content = compose()["configs"]["gateway"]["content"]
    forwarded = re.findall(r"location (.+) \{ proxy_pass https://superlink:8000; \}", content)
    assert forwarded == ["/v1/fleet/", "= /health"]
    assert "location / { return 403; }" in content
    assert "proxy_ssl_verify on;" in content
    # Compose would interpret a dollar sign as one of its variables.
    assert "$" not in content


def test_certs_creates_all_secrets_of_the_compose_file(certs: Path) -> None:
    for secret in compose()["secrets"].values():
        path = certs / Path(secret["file"]).name
        assert path.is_file(), path
        private = path.suffix in (".key", ".secret")
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if private else 0o644), path


def test_server_certificate_is_signed_and_valid_for_its_names(certs: Path) -> None:
    authority = x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((certs / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["superlink", "localhost", "fed.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "192.0.2.7"]


def test_public_key_of_a_node_matches_its_private_key(certs: Path) -> None:
    private = serialization.load_ssh_private_key((certs / "node-1.key").read_bytes(), password=None)
    public = serialization.load_ssh_public_key((certs / "node-1.pub").read_bytes())
    assert private.public_key() == public
    assert (certs / "node-0.pub").read_bytes() != (certs / "node-1.pub").read_bytes()


def test_certs_retains_existing_files_adds_nodes_and_renews_on_request(certs: Path) -> None:
    before = {path.name: path.read_bytes() for path in certs.iterdir()}
    make_certs(certs, "--nodes", "4", "--renew")
    after = {path.name: path.read_bytes() for path in certs.iterdir()}
    assert after.keys() - before.keys() == {"node-3.key", "node-3.pub", "node-3.secret"}
    assert {name for name in before if after[name] != before[name]} == {"server.key", "server.crt"}
