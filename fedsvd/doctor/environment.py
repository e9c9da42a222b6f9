"""The machine: Python, packages, GPU, ports, folders."""

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

_LITTLE_SPACE = 2 * 2**30


def check_python() -> Finding:
    """Hold the running Python against what the package asks for."""
    wanted = SpecifierSet(importlib.metadata.metadata("fedsvd")["Requires-Python"])
    here = ".".join(map(str, sys.version_info[:3]))
    if here in wanted:
        return Finding("Python", "ok", here)
    return Finding("Python", "bad", f"{here}; {wanted} is needed", "Make the environment anew with such a Python.")


def check_packages() -> Iterator[Finding]:
    """Hold each package against the range that is allowed, and against the version that was tested."""
    tested = _tested_versions()
    for line in importlib.metadata.requires("fedsvd") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        yield check_package(needed, tested.get(needed.name.lower()))


def check_package(needed: Requirement, tested: str | None) -> Finding:
    """Check one package."""
    install = f"pip install '{needed.name}=={tested}'" if tested else f"pip install '{needed}'"
    try:
        here = importlib.metadata.version(needed.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(needed.name, "bad", "not installed", install)
    # A local label, as of a build for CPUs, is no other version.
    plain = here.partition("+")[0]
    if not needed.specifier.contains(plain, prereleases=True):
        return Finding(needed.name, "bad", f"{here}; {needed.specifier} is needed", install)
    if tested and plain != tested:
        return Finding(
            needed.name, "note", f"{here}; {tested} is what the tests ran with", f"In case of doubt: {install}"
        )
    return Finding(needed.name, "ok", here)


def check_gpu() -> Finding:
    """See what torch can train on."""
    import torch

    if torch.cuda.is_available():
        devices = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            devices.append(f"{torch.cuda.get_device_name(index)} ({free / 2**30:.0f} of {total / 2**30:.0f} GiB free)")
        return Finding("GPU", "ok", ", ".join(devices))
    if shutil.which("nvidia-smi"):
        advice = (
            "Install torch's build for CUDA (docs/deployment.md, GPU), and in a container hand in the device "
            "(the profile gpu); nvidia-smi itself must list it."
        )
        return Finding("GPU", "note", f"nvidia-smi is there, but torch {torch.__version__} sees no device", advice)
    return Finding("GPU", "ok", "none; training runs on the CPU")


def check_port(port: int, what: str, host: str = "127.0.0.1") -> Finding:
    """See whether a port is free to listen on.

    Args:
        port: Its number.
        what: Who wants it.
        host: Address to listen on.
    """
    name = f"port {port} ({what})"
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            advice = (
                f"Fine where it is a {what} that is meant to run here; else stop what listens, or take another port."
            )
            return Finding(name, "note", f"taken ({error.strerror})", advice)
    return Finding(name, "ok", "free")


def check_folder(path: Path, what: str) -> Finding:
    """See whether files can be written, kept and renamed in a folder, and whether there is room.

    Args:
        path: It need not be there yet.
        what: What is kept in it.
    """
    name = f"{what} ({path})"
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".fedsvd-doctor-") as folder:
            probe = Path(folder) / "probe"
            with probe.open("wb") as stream:
                stream.write(b"probe")
                os.fsync(stream.fileno())
            probe.replace(Path(folder) / "renamed")
    except OSError as error:
        advice = f"Give user {os.getuid()} the right to write there, or point to another folder."
        return Finding(name, "bad", f"cannot be written ({error.strerror})", advice)
    free = shutil.disk_usage(there).free
    room = f"writable, {free / 2**30:.1f} GiB free"
    if free < _LITTLE_SPACE:
        return Finding(name, "note", room, "Make room: a full disk ends a run at its next checkpoint.")
    return Finding(name, "ok", room)


def _tested_versions() -> dict[str, str]:
    lines = (app_root() / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line)
    return {name.partition("[")[0].strip().lower(): version.strip() for name, version in pins}
