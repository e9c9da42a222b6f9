"""Checks of the Dockerfile and of the health checks that need no Docker engine."""

import re
import shlex
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from deployment_files import ROOT, instructions, make_certs, services, values
from packaging.specifiers import SpecifierSet
from packaging.version import Version


def test_dockerfile_instructions_are_valid() -> None:
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert {name for name, _ in instructions()} <= known
    for script in values("RUN"):
        subprocess.run(["sh", "-n", "-c", re.sub(r"--mount=\S+", "", script)], check=True)


def test_image_has_a_supported_python_version() -> None:
    assert values("FROM") == ["${BASE_IMAGE}"]
    [base] = [value for value in values("ARG") if value.startswith("BASE_IMAGE=")]
    name, _, tag = base.removeprefix("BASE_IMAGE=").partition(":")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert name == "python"
    assert Version(tag.removesuffix("-slim")) in SpecifierSet(project["requires-python"])


def test_image_is_tagged_with_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {service["image"] for service in services().values()} - {services()["gateway"]["image"]}
    assert images == {f"fedsvd:{version}-cpu", f"fedsvd:{version}-gpu"}


def test_files_copied_by_the_dockerfile_are_tracked() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for line in values("COPY"):
        *sources, _ = shlex.split(line)
        for source in sources:
            assert any(path == source or path.startswith(f"{source}/") for path in tracked), source
            assert source in allowed, source


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


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_health_check_needs_a_good_answer_and_the_right_authority(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    make_certs(certs)
    with serving(Health) as plain, serving(Health, certs) as tls:
        expected = {
            f"http://127.0.0.1:{plain}/health": True,
            f"http://127.0.0.1:{plain}/other": False,
            f"https://127.0.0.1:{tls}/health {certs}/ca.crt": True,
            f"https://127.0.0.1:{tls}/other {certs}/ca.crt": False,
            f"https://127.0.0.1:{tls}/health /etc/hostname": False,
            f"grpc://127.0.0.1:{plain}": False,
            "http://127.0.0.1:1/health": False,
        }
        results = {
            arguments: subprocess.run(
                [ROOT / "scripts" / "healthy", *arguments.split()], capture_output=True, check=False
            ).returncode
            == 0
            for arguments in expected
        }
    assert results == expected


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], certs: Path | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certs is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certs / "server.crt", certs / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
