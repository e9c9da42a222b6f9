"""Flower's services log a lost connection once, and once that it is back."""

import logging
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker

from fedsvd.services.reconnects import LOST, ReconnectFilter, log_reconnects_once


@pytest.fixture
def flower_log() -> Iterator[list[str]]:
    """Return the lines of Flower's log, with the filter that the services use."""
    lines: list[str] = []
    logger, handler = logging.getLogger("flwr"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    log_reconnects_once()
    log_reconnects_once()
    yield lines
    logger.removeHandler(handler)
    for item in logger.filters[:]:
        if isinstance(item, ReconnectFilter):
            logger.removeFilter(item)


def test_many_attempts_of_flowers_own_retries_are_two_lines(flower_log: list[str]) -> None:
    def connect_at_fifth_attempt() -> None:
        attempts.append(1)
        if len(attempts) < 5:
            raise httpx.ConnectError("refused")

    for _ in range(2):
        attempts: list[int] = []
        invoker = make_simple_http_retry_invoker()
        invoker.jitter = lambda _: 0.0
        invoker.invoke(connect_at_fifth_attempt)
    logging.getLogger("flwr").info("Received successfully")

    assert [line.split(" after")[0] for line in flower_log] == [
        *[LOST, "Connection successful"] * 2,
        "Received successfully",
    ]


def test_services_are_flowers_own_commands() -> None:
    command = [sys.executable, "-P", "-m", "fedsvd.services"]
    version = subprocess.run([*command, "flower-supernode", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("Flower version: 1.41")
    wrong = subprocess.run([*command, "flower-node"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "unknown service 'flower-node'" in wrong.stderr
