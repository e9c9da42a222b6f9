"""What is handed out: the wheel, and the bundle that Flower sends to its nodes."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def tracked(*patterns: str) -> set[str]:
    """Files under version control, so that what lies about in a checkout counts for nothing."""
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=environment or None
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From the source distribution, as package indexes and their users build it.
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".", cwd=ROOT)
    call(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir(), cwd=ROOT)
    [found] = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_both_apps_and_the_configuration(wheel: Path) -> None:
    apps = {
        f"fedsvd/_app/{name}"
        for name in tracked("server/*.py", "client/*.py", "conf/*.yaml", "pyproject.toml", "requirements.lock")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {PurePosixPath(name).name for name in archive.namelist() if ".dist-info/" in name}
    assert names == tracked("fedsvd/*.py", "fedsvd/py.typed") | apps
    assert metadata == {"METADATA", "WHEEL", "RECORD", "entry_points.txt"}


def test_the_wheel_alone_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are this environment's; its own editable fedsvd must not be seen through them.
    [packages] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    code = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    (packages / "dependencies.pth").write_text(code)
    where = call(python, "-c", "import fedsvd; print(fedsvd.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(packages)

    out = call(tmp_path / "venv" / "bin" / "fedsvd", "train", "experiment=smoke", cwd=tmp_path)

    assert "run directory" in out
    [metrics] = (tmp_path / "runs").glob("*/*/metrics.jsonl")
    # Before the first round and after each of two.
    assert len(metrics.read_text().splitlines()) == 3


def test_the_flower_bundle_holds_the_same_and_nothing_else(tmp_path: Path) -> None:
    app = tmp_path / "app"
    for name in tracked("fedsvd", "server", "client", "conf", "tests", "scripts", "pyproject.toml", "README.md"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_bytes((ROOT / name).read_bytes())
    call(Path(sys.executable).with_name("flwr"), "build", "--app", ".", cwd=app)
    [bundle] = app.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        names = {name for name in archive.namelist() if not name.startswith(".info/")}
    expected = tracked("fedsvd/*.py", "server/*.py", "client/*.py", "conf/*.yaml") | {"pyproject.toml"}
    assert names == expected
