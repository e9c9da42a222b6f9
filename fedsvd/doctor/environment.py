"""Checks of the machine: Python, packages, GPU, ports and directories."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedsvd.config.compose import app_root
from fedsvd.doctor.finding import Finding

_LOW_SPACE_BYTES = 2 * 2**30


def check_python() -> Finding:
    """Check the running Python against the version that the package requires."""
    required = SpecifierSet(importlib.metadata.metadata("fedsvd")["Requires-Python"])
    installed = ".".join(map(str, sys.version_info[:3]))
    if installed in required:
        return Finding("Python", "ok", installed)
    advice = f"Recreate the environment with Python {required}."
    return Finding("Python", "error", f"{installed}; {required} is required", advice)


def check_packages() -> Iterator[Finding]:
    """Check each dependency against the required range and the tested version."""
    tested = _tested_versions()
    for line in importlib.metadata.requires("fedsvd") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield check_package(requirement, tested.get(requirement.name.lower()))


def check_package(requirement: Requirement, tested: str | None) -> Finding:
    """Check one package.

    Args:
        requirement: Name and required range.
        tested: Version in the lock file; None if the package is not in it.
    """
    name = requirement.name
    install = f"pip install '{name}=={tested}'" if tested else f"pip install '{requirement}'"
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "error", "not installed", install)
    # A local version label, such as +cpu, does not make it another version.
    public = installed.partition("+")[0]
    if not requirement.specifier.contains(public, prereleases=True):
        return Finding(name, "error", f"{installed}; {requirement.specifier} is required", install)
    if tested and public != tested:
        return Finding(name, "warning", f"{installed}; tested with {tested}", f"If problems occur: {install}")
    return Finding(name, "ok", installed)


def check_gpu() -> Finding:
    """Check which GPUs torch can use."""
    import torch

    if torch.cuda.is_available():
        devices = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices.append(f"{torch.cuda.get_device_name(index)} ({free / 2**30:.0f} of {total / 2**30:.0f} GiB free)")
        return Finding("GPU", "ok", ", ".join(devices))
    if shutil.which("nvidia-smi"):
        advice = (
            "Install a CUDA build of torch; in containers, start the services whose names end in -gpu "
            "(docs/deployment.md, step 4). nvidia-smi must list the device."
        )
        return Finding(
            "GPU", "warning", f"nvidia-smi is installed, but torch {torch.__version__} finds no device", advice
        )
    return Finding("GPU", "ok", "none; training runs on the CPU")


def check_port(port: int, service: str, host: str = "127.0.0.1") -> Finding:
    """Check whether a port is free to listen on.

    Args:
        port: Port number.
        service: Service that listens on this port.
        host: Address to listen on.
    """
    name = f"port {port} ({service})"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = (
                f"Ignore this if a {service} is meant to run here; otherwise stop the process that listens on the "
                "port, or use another port."
            )
            return Finding(name, "warning", f"in use ({error.strerror})", advice)
    return Finding(name, "ok", "free")


def check_folder(path: Path, purpose: str) -> Finding:
    """Check whether files can be written, synced and renamed in a directory, and whether disk space is left.

    Args:
        path: The directory; if it does not exist yet, its nearest existing parent is checked.
        purpose: What is stored in it.
    """
    name = f"{purpose} ({path})"
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".fedsvd-doctor-") as folder:
            probe = Path(folder) / "probe"
            with probe.open("wb") as stream:
                stream.write(b"probe")
                os.fsync(stream.fileno())
            probe.replace(Path(folder) / "renamed")
    except OSError as error:
        advice = f"Give user {os.getuid()} write permission, or use another directory."
        return Finding(name, "error", f"not writable ({error.strerror})", advice)
    free = shutil.disk_usage(existing).free
    detail = f"writable, {free / 2**30:.1f} GiB free"
    if free < _LOW_SPACE_BYTES:
        return Finding(name, "warning", detail, "Free disk space: a full disk ends a run at its next checkpoint.")
    return Finding(name, "ok", detail)


def _tested_versions() -> dict[str, str]:
    lines = (app_root() / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line)
    return {name.partition("[")[0].strip().lower(): version.strip() for name, version in pins}
