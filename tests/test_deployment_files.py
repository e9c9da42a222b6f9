"""Checks of docker-compose.yml that need no Docker engine."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from deployment_files import ROOT, compose, instructions, services, values

from client.node_limits import read_limits
from fedsvd.compat.flower import parse_node_config


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


def test_keys_data_and_backups_are_never_committed() -> None:
    mounted = {volume.split(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    secret = [f"{folder}/reports.csv" for folder in mounted if folder.startswith("./")]
    secret += ["certs/ca.key", "certs/new/ca.key", "backups/ledger-2026-01-01.sqlite", ".env"]
    assert len(secret) == 8
    ignored = subprocess.run(["git", "check-ignore", *secret], cwd=ROOT, capture_output=True, text=True).stdout
    assert ignored.split() == secret
    # Nothing of the project looks like them: the build leaves out what is ignored.
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


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


def test_kubernetes_starts_what_compose_starts() -> None:
    documents = {item["kind"]: item for item in yaml.safe_load_all((ROOT / "docs/kubernetes/site.yaml").read_text())}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    for container, service in zip(pod["containers"], ("supernode-0", "superexec-clientapp-0"), strict=True):
        expected = services()[service]
        options = {argument.split("=")[0] for argument in container["args"] if argument.startswith("--")}
        assert options == {argument for argument in expected["command"] if argument.startswith("--")}
        assert container["command"] == expected["command"][: len(container["command"])]
        assert container["livenessProbe"]["exec"]["command"] == expected["healthcheck"]["test"][1:]
        environment = {item["name"]: item["value"] for item in container["env"]}
        assert environment == {key: value for key, value in expected["environment"].items() if value}
    read_limits(parse_node_config(pod["containers"][0]["args"][-1]))
