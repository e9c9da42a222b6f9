"""A headless browser with a new profile and without network access; where there is none, the test is skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def browse(url: str, profile: Path, *switches: str) -> str:
    """Open a page, and return what the browser prints.

    Args:
        url: Address of the page.
        profile: Directory for the browser's profile.
        switches: Chromium's switches, such as ``--screenshot=PATH``.
    """
    if CHROMIUM is None:
        reason = "there is no chromium on the PATH; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    quiet = ["disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync"]
    completed = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-component-update", *(f"--{name}" for name in quiet),
         f"--user-data-dir={profile}", "--hide-scrollbars", *switches, url],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
