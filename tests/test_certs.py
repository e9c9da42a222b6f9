"""``scripts/certs``: what it creates, what it keeps, and what it refuses."""

import datetime
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from deployment_files import certs_command, compose, make_certs


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "certs"
    make_certs(folder, "--host", "fed.example.org", "--host", "192.0.2.7")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory of one node whose files a test may change."""
    make_certs(tmp_path / "certs", "--nodes", "1")
    return tmp_path / "certs"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def refusal(folder: Path, *arguments: str) -> str:
    """Return why a call is refused, after a check that it has changed nothing."""
    before = content(folder)
    done = subprocess.run(certs_command(folder, *arguments), cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert content(folder) == before
    return done.stderr


def test_certs_creates_all_secrets_of_the_compose_file(certs: Path) -> None:
    files = {secret["file"] for secret in compose()["secrets"].values()}
    for secret in files - {"/dev/null"}:
        path = certs / Path(secret).name
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


def test_nodes_are_added_without_the_authoritys_key(own: Path) -> None:
    (own / "ca.key").unlink()
    before = content(own)
    make_certs(own, "--nodes", "2")
    after = content(own)
    assert after.keys() - before.keys() == {"node-1.key", "node-1.pub", "node-1.secret"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("removed", "arguments", "missing"),
    [
        (["ca.key"], ["--renew"], "ca.key not found"),
        (["ca.crt"], ["--renew"], "ca.crt not found"),
        (["ca.key", "ca.crt"], ["--renew"], "ca.key and ca.crt not found"),
        # What a site has.
        (["ca.key", "server.key", "server.crt"], [], "ca.key not found"),
    ],
)
def test_an_incomplete_authority_is_never_replaced(
    removed: list[str], arguments: list[str], missing: str, own: Path
) -> None:
    for name in removed:
        (own / name).unlink()
    assert missing in refusal(own, *arguments)


def test_another_authoritys_key_and_an_unreadable_one_are_refused(own: Path, certs: Path) -> None:
    (own / "ca.key").write_bytes((certs / "ca.key").read_bytes())
    assert "ca.key belongs to another certificate than ca.crt" in refusal(own, "--renew")
    (own / "ca.key").write_bytes(b"")
    assert "cannot be read" in refusal(own, "--renew")


def test_a_missing_public_key_is_derived_from_the_private_one(own: Path) -> None:
    before = content(own)
    (own / "node-0.pub").unlink()
    make_certs(own, "--nodes", "1")
    assert content(own) == before


def test_the_public_key_of_a_node_that_has_its_key_elsewhere_is_kept(own: Path) -> None:
    for name in ("node-0.key", "node-0.secret"):
        (own / name).unlink()
    before = content(own)
    make_certs(own, "--nodes", "1", "--renew")
    after = content(own)
    assert after.keys() == before.keys()
    assert after["node-0.pub"] == before["node-0.pub"]


def test_the_authority_outlives_many_server_certificates(own: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert (certificate(own / "server.crt").not_valid_after_utc - now).days in (364, 365)
    assert (certificate(own / "ca.crt").not_valid_after_utc - now).days in (3649, 3650)


def test_no_server_certificate_outlives_its_authority(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    make_certs(folder, "--ca-days", "40")
    end = certificate(folder / "ca.crt").not_valid_after_utc
    assert certificate(folder / "server.crt").not_valid_after_utc == end

    command = certs_command(folder, "--renew", "--days", "3650")
    said = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert certificate(folder / "server.crt").not_valid_after_utc == end
    assert f"server.crt is valid until {end:%Y-%m-%d}, not for 3650 days: ca.crt ends then" in said


def test_an_expired_authority_is_refused(own: Path) -> None:
    import certs

    certs.make_authority(own, days=0)
    said = refusal(own, "--renew")
    assert "ca.crt expired on" in said
    assert "new authority in an empty directory" in said


def test_an_unreadable_key_without_its_public_one_is_refused(own: Path) -> None:
    (own / "node-0.pub").unlink()
    (own / "node-0.key").write_bytes(b"")
    assert "node-0.key cannot be read" in refusal(own, "--nodes", "1")


@pytest.mark.parametrize("arguments", [["--days", "0"], ["--days", "4000000"], ["--ca-days", "0"], ["--nodes", "0"]])
def test_numbers_out_of_range_are_refused(arguments: list[str], own: Path) -> None:
    assert f"{' '.join(arguments)} is invalid" in refusal(own, *arguments)
