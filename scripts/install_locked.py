"""Install the packages of requirements.lock and this project into the environment of the running interpreter.

uv, which is in the lock file, takes a fraction of the time of pip. It does not read the configuration of pip, so it
receives the same package sources. If an option of pip has no equivalent, or if uv fails, pip installs the packages.
"""

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

LOCK = "requirements.lock"
# pip separates several values with white space; uv separates folders and pages of links with commas.
SOURCES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
# Options that affect neither which packages are installed nor where they come from.
IRRELEVANT = frozenset(
    {
        "cache-dir", "disable-pip-version-check", "no-cache-dir", "no-color", "no-input", "no-python-version-warning",
        "no-warn-script-location", "progress-bar", "quiet", "require-virtualenv", "retries", "root-user-action",
        "verbose",
    }
)  # fmt: skip


def pip_options(listing: str) -> dict[str, str]:
    """Return the options that ``pip install`` uses, from the output of ``pip config list``."""
    options: dict[str, str] = {}
    lines = [line.partition("=") for line in listing.splitlines() if "=" in line]
    # Later sections override earlier ones.
    for section in ("global.", "install.", ":env:."):
        for key, _, value in lines:
            if key.startswith(section):
                options[key.removeprefix(section)] = str(ast.literal_eval(value))
    return options


def uv_environment(options: Mapping[str, str]) -> dict[str, str] | None:
    """Translate pip's options into environment variables of uv.

    Returns:
        The variables; None if an option has no equivalent.
    """
    if options.keys() - SOURCES.keys() - IRRELEVANT:
        return None
    # pip takes the best version of all sources; uv by default takes the first source that has the package.
    environment = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_NO_CONFIG": "1"}
    for key, (name, separator) in SOURCES.items():
        if key in options:
            environment[name] = separator.join(options[key].split())
    return environment


def install_with_uv() -> bool:
    """Install with uv; return whether that succeeded."""
    pin = re.search(r"^uv==\S+", Path(LOCK).read_text(), re.MULTILINE)
    listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    environment = uv_environment(pip_options(listing))
    if pin is None or environment is None:
        return False
    subprocess.run([*PIP, "install", "--quiet", "--no-deps", pin[0]], check=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    commands = ([*uv, "--requirement", LOCK], [*uv, "--no-deps", "--editable", "."])
    return all(
        subprocess.run(command, env=os.environ | environment, check=False).returncode == 0 for command in commands
    )


def install_with_pip() -> None:
    install = [*PIP, "install", "--quiet", "--no-compile"]
    subprocess.run([*install, "--requirement", LOCK], check=True)
    subprocess.run([*install, "--no-deps", "--editable", "."], check=True)


def compile_packages() -> None:
    """Compile what is installed to bytecode on all cores, without the packages' own tests."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-x", r"/tests?/", sysconfig.get_path("purelib")]
    # Some packages contain templates that are not valid Python.
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

if __name__ == "__main__":
    if not install_with_uv():
        install_with_pip()
    compile_packages()
