"""These tests need a Docker engine with compose; without one they are skipped. scripts/test tests/docker -n 0"""

import os

import pytest
from docker_compose import IMAGE, ROOT, call, engine_answers


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """Build the image with the compose file. Its build arguments are taken from the environment."""
    if not engine_answers():
        pytest.skip("no Docker engine with compose answers")
    file = str(ROOT / "docker-compose.yml")
    call("docker", "compose", "--file", file, "build", "superlink", env=os.environ | {"FEDSVD_IMAGE": IMAGE})


@pytest.fixture(scope="session")
def user_id() -> str:
    """User ID of the containers: the owner of what scripts/certs writes."""
    return str(os.getuid() or 49999)
