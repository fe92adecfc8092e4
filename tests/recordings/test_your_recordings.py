"""The Python of docs/your-recordings.md, run where the recordings are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cnnf_brain.recordings import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-recordings.md"


def test_the_page_runs(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (shared / "data" / "IT_shapes").is_dir():
        pytest.skip("needs the recordings IT_shapes, which are not there")
    (tmp_path / "clone").mkdir()
    (tmp_path / "shared").symlink_to(shared, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "clone")
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    written = load(["IT=results/it_shapes.nc"], ["IT"])["IT"][0]
    responses = np.load(shared / "data" / "IT_shapes" / "responses.npy")
    np.testing.assert_array_equal(written.responses, responses.T.astype(np.float64))
    np.testing.assert_array_equal(names["recordings"].responses, written.responses)
    assert written.images.ids[:2] == ("R1a", "R1b")
    assert written.images.digest() == names["recordings"].images.digest()
    assert len(written.images) == 64
    assert written.excluded == ()
    assert set(written.subjects) == {"1", "2"}  # type: ignore[arg-type]


def test_the_page_names_what_a_file_holds(tmp_path: Path, image_files: list[Path], repeats: npt.NDArray[Any]) -> None:
    import xarray as xr

    from cnnf_brain.recordings import write_assembly
    from cnnf_brain.recordings.assembly import _read

    path = write_assembly(
        tmp_path / "all.nc", repeats, image_files, region="IT", object_names=["a"] * 12, subjects=["b"] * 5
    )
    data: xr.Dataset = _read(path)
    rows = re.findall(r"^\| (attribute )?`(\w+)` \| (?:\(([\w, ]+)\))?", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    page = {name: tuple(dims.split(", ")) for attribute, name, dims in rows if not attribute}
    assert page == {str(name): data[name].dims for name in data.variables}
    assert {name for attribute, name, _ in rows if attribute} == set(data.attrs)
