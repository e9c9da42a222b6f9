"""``fedsvd doctor``: each thing that can be wrong with a machine is found, named, and comes with advice."""

import datetime
import http.server
import os
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


def wrong(folder: Path) -> Finding:
    [found] = [finding for finding in doctor.check_certificates(folder) if finding.state != "ok"]
    assert found.advice
    return found


def test_a_machine_on_which_the_tests_run_is_well() -> None:
    assert doctor.check_python().state == "ok"
    assert {finding.state for finding in doctor.check_packages()} == {"ok"}
    assert doctor.check_gpu().state in ("ok", "note")


@pytest.mark.parametrize(
    ("needed", "tested", "state"),
    [
        ("numpy>=1", None, "ok"),
        ("numpy<1", "0.9", "bad"),
        ("numpy>=1", "0.9", "note"),
        ("a-package-of-no-name>=1", None, "bad"),
    ],
)
def test_a_package_is_held_against_range_and_tested_version(needed: str, tested: str | None, state: str) -> None:
    found = check_package(Requirement(needed), tested)
    assert found.state == state
    assert (found.advice == "") == (state == "ok")


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert doctor.check_port(port, "SuperLink").state == "note"
    assert doctor.check_port(port, "SuperLink").state == "ok"


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_folder(tmp_path / "not" / "yet", "run folders").state == "ok"
    assert list(tmp_path.iterdir()) == []

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root, as whom tests may run, may write anywhere.
    monkeypatch.setattr(os, "fsync", refuse)
    found = doctor.check_folder(tmp_path, "run folders")
    assert (found.state, "Permission denied" in found.found) == ("bad", True)


def test_certificates_as_they_are_made_are_well(certs: Path) -> None:
    assert {finding.state for finding in doctor.check_certificates(certs)} == {"ok"}


def test_a_missing_authority_is_found(certs: Path) -> None:
    (certs / "ca.crt").unlink()
    assert wrong(certs).found == "not there"


def test_a_server_certificate_of_another_authority_is_found(certs: Path) -> None:
    (certs / "ca.crt").write_bytes(signed("other", datetime.timedelta(days=99))[0])
    assert "not signed" in wrong(certs).found


@pytest.mark.parametrize(("days", "state", "word"), [(-1, "bad", "expired"), (7, "note", "from now")])
def test_expiry_is_told_before_it_comes(days: int, state: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(signed("ca", datetime.timedelta(days=days, hours=1))[0])
    found = wrong(tmp_path)
    assert (found.state, word in found.found) == (state, True)


def test_a_key_that_belongs_elsewhere_or_lies_open_is_found(certs: Path) -> None:
    other = signed("other", datetime.timedelta(days=99))[1]
    key = (certs / "server.key").read_bytes()
    (certs / "server.key").write_bytes(other)
    assert "another certificate's" in wrong(certs).found
    (certs / "server.key").write_bytes(key)
    (certs / "node-0.key").chmod(0o644)
    assert "open to others (mode 644)" in wrong(certs).found


def signed(name: str, holds: datetime.timedelta) -> tuple[bytes, bytes]:
    """A certificate that signs itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    names = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(names).issuer_name(names).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=9)).not_valid_after(now + holds)
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
    """What answers as a SuperLink does, with the certificate that scripts/certs made."""
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


def test_a_superlink_is_reached_as_a_node_would(superlink: str, certs: Path, tmp_path: Path) -> None:
    assert doctor.check_superlink(superlink, certs / "ca.crt").state == "ok"
    strange = tmp_path / "strange.crt"
    strange.write_bytes(signed("strange", datetime.timedelta(days=9))[0])
    found = doctor.check_superlink(superlink, strange)
    assert (found.state, "its certificate is refused" in found.found) == ("bad", True)
    assert doctor.check_superlink(superlink, None).state == "bad"


@pytest.mark.parametrize("address", ["nobody", "127.0.0.1:1", "no.such.name.invalid:8000"])
def test_a_superlink_that_is_not_there_is_named(address: str, certs: Path) -> None:
    found = doctor.check_superlink(address, certs / "ca.crt")
    assert (found.state, bool(found.advice)) == ("bad", True)


def test_the_command_checks_what_it_is_given_and_fails_where_something_is_bad(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    with Ledger.open(ledger, "f" * 64) as opened:
        opened.reserve("7", 1, "m", Spend(1.0, 0.1, 2), Budget(9.0, 1e-5, 9.0, 1e-5, "rdp"))
    site = tmp_path / "site.csv"
    site.write_text("text,label\nfine,1\npoor,0\n")
    words = [f"certs={certs}", f"ledger={ledger}", f"runs={tmp_path}", f'node=partition-id=0 data-path="{site}"']
    run = ["experiment=smoke", "data=node", "data.labels=['0','1']", "federation.weighting=uniform"]

    assert main(["doctor", *words, *run]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "whole; 1 charges of 1 runs" in said
    assert "holds 1 of 0, 1 of 1" in said
    assert "allows share-counts = False" in said

    other = tmp_path / "other.csv"
    other.write_text("text,label\nfine,good\n")
    assert main(["doctor", *[word.replace(str(site), str(other)) for word in words], *run]) == 1
    captured = capsys.readouterr()
    assert "does not know: good" in " ".join(captured.out.split())
    assert "1 of" in captured.err


@pytest.mark.parametrize("words", [["certificates=x"], ["all"]])
def test_words_that_are_not_understood_end_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert "write fedsvd doctor" in capsys.readouterr().err
