"""``fedsvd doctor``: every problem is detected and reported with a suggested fix."""

import datetime
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from packaging.requirements import Requirement

from fedsvd import doctor
from fedsvd.cli import main
from fedsvd.doctor import Finding
from fedsvd.doctor.environment import check_package
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    folder = tmp_path / "certs"
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(folder), "--nodes", "1"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    return folder


def only_problem(folder: Path) -> Finding:
    """Check the certificates in a directory and return the one finding that is not ok."""
    [finding] = [finding for finding in doctor.check_certificates(folder) if finding.status != "ok"]
    assert finding.advice
    return finding


def test_the_test_machine_passes() -> None:
    assert doctor.check_python().status == "ok"
    assert {finding.status for finding in doctor.check_packages()} == {"ok"}
    assert doctor.check_gpu().status in ("ok", "warning")


@pytest.mark.parametrize(
    ("requirement", "tested", "status"),
    [
        ("numpy>=1", None, "ok"),
        ("numpy<1", "0.9", "error"),
        ("numpy>=1", "0.9", "warning"),
        ("a-package-of-no-name>=1", None, "error"),
    ],
)
def test_packages_are_checked_against_the_required_range_and_the_tested_version(
    requirement: str, tested: str | None, status: str
) -> None:
    finding = check_package(Requirement(requirement), tested)
    assert finding.status == status
    assert (finding.advice == "") == (status == "ok")


def test_a_port_in_use_is_reported() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert doctor.check_port(port, "SuperLink").status == "warning"
    assert doctor.check_port(port, "SuperLink").status == "ok"


def test_a_directory_that_is_not_writable_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_folder(tmp_path / "not" / "yet", "run directories").status == "ok"
    assert list(tmp_path.iterdir()) == []

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    # File permissions are not used, because the tests may run as root.
    monkeypatch.setattr(os, "fsync", refuse)
    finding = doctor.check_folder(tmp_path, "run directories")
    assert (finding.status, "Permission denied" in finding.detail) == ("error", True)


def test_newly_created_certificates_pass(certs: Path) -> None:
    assert {finding.status for finding in doctor.check_certificates(certs)} == {"ok"}


def test_a_missing_authority_is_reported(certs: Path) -> None:
    (certs / "ca.crt").unlink()
    finding = only_problem(certs)
    assert finding.detail == "not found"
    # The server has a certificate of this authority, so scripts/certs creates no other one.
    assert "Copy it from any other machine of the federation" in finding.advice


def test_a_server_certificate_of_another_authority_is_reported(certs: Path) -> None:
    (certs / "ca.crt").write_bytes(self_signed("other", datetime.timedelta(days=99))[0])
    assert "not signed" in only_problem(certs).detail


@pytest.mark.parametrize(("days", "status", "text"), [(-1, "error", "expired"), (7, "warning", "from now")])
def test_expired_and_soon_expiring_certificates_are_reported(days: int, status: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(self_signed("ca", datetime.timedelta(days=days, hours=1))[0])
    finding = only_problem(tmp_path)
    assert (finding.status, text in finding.detail) == (status, True)


def test_a_missing_public_key_can_be_derived_as_advised(certs: Path) -> None:
    public = (certs / "node-0.pub").read_bytes()
    (certs / "node-0.pub").unlink()
    finding = only_problem(certs)
    assert (finding.check, finding.status) == (f"{certs}/node-0.pub", "error")
    command = finding.advice.partition(": ")[2].removesuffix(".")
    assert command == f"ssh-keygen -y -f {certs}/node-0.key > {certs}/node-0.pub"
    if shutil.which("ssh-keygen"):
        subprocess.run(command, shell=True, check=True)
        assert (certs / "node-0.pub").read_bytes().split()[:2] == public.split()[:2]
        assert {finding.status for finding in doctor.check_certificates(certs)} == {"ok"}


def test_no_advice_at_a_site_replaces_the_authority(certs: Path) -> None:
    for path in certs.iterdir():
        if path.name not in ("ca.crt", "node-0.pub"):
            path.unlink() if path.name[:4] != "node" else path.write_bytes(b"")
    problems = [finding for finding in doctor.check_certificates(certs) if finding.status != "ok"]
    assert len(problems) == 3
    for finding in problems:
        assert "scripts/certs" not in finding.advice
        assert "docs/deployment.md, step 2" in finding.advice


def test_a_server_certificate_that_ends_with_its_authority_needs_a_new_authority(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(tmp_path), "--ca-days", "7"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    problems = [finding for finding in doctor.check_certificates(tmp_path) if finding.status != "ok"]
    assert [finding.check for finding in problems] == [f"{tmp_path}/ca.crt", f"{tmp_path}/server.crt"]
    assert [finding.status for finding in problems] == ["warning", "warning"]
    for finding in problems:
        assert "new authority in an empty directory" in finding.advice
        assert "copy its ca.crt to every site" in finding.advice


def test_a_mismatched_key_and_wrong_permissions_are_reported(certs: Path) -> None:
    other = self_signed("other", datetime.timedelta(days=99))[1]
    key = (certs / "server.key").read_bytes()
    (certs / "server.key").write_bytes(other)
    assert "belongs to another certificate" in only_problem(certs).detail
    (certs / "server.key").write_bytes(key)
    (certs / "node-0.key").chmod(0o644)
    assert "accessible by other users (mode 644)" in only_problem(certs).detail


def self_signed(name: str, validity: datetime.timedelta) -> tuple[bytes, bytes]:
    """Return a self-signed certificate and its key, both as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    names = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(names).issuer_name(names).public_key(key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=9)).not_valid_after(now + validity)
    )
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), private


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def superlink(certs: Path) -> Iterator[str]:
    """Address of a server with a SuperLink's health endpoint and the certificate from scripts/certs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_health_and_certificate_of_a_superlink_are_checked(superlink: str, certs: Path, tmp_path: Path) -> None:
    assert doctor.check_superlink(superlink, certs / "ca.crt").status == "ok"
    other_authority = tmp_path / "other.crt"
    other_authority.write_bytes(self_signed("other", datetime.timedelta(days=9))[0])
    finding = doctor.check_superlink(superlink, other_authority)
    assert (finding.status, "certificate rejected" in finding.detail) == ("error", True)
    assert doctor.check_superlink(superlink, None).status == "error"


@pytest.mark.parametrize("address", ["nobody", "127.0.0.1:1", "no.such.name.invalid:8000"])
def test_an_unreachable_superlink_is_reported(address: str, certs: Path) -> None:
    finding = doctor.check_superlink(address, certs / "ca.crt")
    assert (finding.status, bool(finding.advice)) == ("error", True)


def test_the_command_runs_the_requested_checks_and_fails_on_an_error(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    with Ledger.open(ledger, "f" * 64) as opened:
        opened.reserve("7", 1, "m", Spend(1.0, 0.1, 2), Budget(9.0, 1e-5, 9.0, 1e-5, "rdp"))
    site = tmp_path / "site.csv"
    site.write_text("text,label\nfine,1\npoor,0\n")
    arguments = [f"certs={certs}", f"ledger={ledger}", f"runs={tmp_path}", f'node=partition-id=0 data-path="{site}"']
    overrides = ["experiment=smoke", "data=node", "data.labels=['0','1']", "federation.weighting=uniform"]

    assert main(["doctor", *arguments, *overrides]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "intact; 1 charges from 1 runs" in output
    assert "label counts: 0 = 1, 1 = 1" in output
    assert "limits: share-counts = False" in output
    assert "trainer: started by the first message of a run; ends after 600 s without a message" in output

    other = tmp_path / "other.csv"
    other.write_text("text,label\nfine,good\n")
    arguments = [argument.replace(str(site), str(other)) for argument in arguments]
    assert main(["doctor", *arguments, *overrides]) == 1
    captured = capsys.readouterr()
    assert "does not know: good" in " ".join(captured.out.split())
    assert "1 of" in captured.err


@pytest.mark.parametrize("arguments", [["certificates=x"], ["all"]])
def test_invalid_arguments_print_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert "Usage: fedsvd doctor" in capsys.readouterr().err
