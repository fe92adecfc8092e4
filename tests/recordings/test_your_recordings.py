"""The Python of docs/your-recordings.md, run as a reader does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import cnnf_brain as cb
from cnnf_brain.recordings import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-recordings.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but the package."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    written, known = load(["IT=recordings.nc"], ["IT"])["IT"][0], cb.load_recordings("simulated-readout", region="IT")
    assert isinstance(known, cb.Recordings)
    np.testing.assert_array_equal(written.repeats, known.repeats)  # type: ignore[arg-type]
    np.testing.assert_array_equal(names["recordings"].responses, written.responses)
    assert written.images.digest() == names["recordings"].images.digest()
    assert (written.images.ids, written.site_ids, written.excluded) == (known.images.ids, known.site_ids, ())


def test_the_page_names_what_a_file_holds(tmp_path: Path, image_files: list[Path], repeats: npt.NDArray[Any]) -> None:
    import xarray as xr

    from cnnf_brain.recordings import write_assembly
    from cnnf_brain.recordings.assembly import _read

    path = write_assembly(
        tmp_path / "all.nc",
        repeats,
        image_files,
        region="IT",
        object_names=["a"] * 12,
        subjects=["b"] * 5,
        sessions=["c"] * 5,
    )
    data: xr.Dataset = _read(path)
    rows = re.findall(r"^\| (attribute )?`(\w+)` \| (?:\(([\w, ]+)\))?", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    page = {name: tuple(dims.split(", ")) for attribute, name, dims in rows if not attribute}
    assert page == {str(name): data[name].dims for name in data.variables}
    assert {name for attribute, name, _ in rows if attribute} == set(data.attrs)
