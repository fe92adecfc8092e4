"""MajajHong2015.public, with an assembly of the same form in place of the download."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnf_brain import io
from cnnf_brain.recordings import load_majaj, majaj, public_available

OBJECTS = ["car", "apple", "face", "boat"]


@pytest.fixture
def assembly(image_files: list[Path]) -> Any:
    """12 images, each shown 2 to 4 times in random order, 3 V4 and 4 IT sites, one time bin."""
    pytest.importorskip("brainscore_vision", reason="needs the brainscore extra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brainscore_core.supported_data_standards.brainio.assemblies import NeuronRecordingAssembly
        from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet
    rng = np.random.default_rng(0)
    ids = [f"id{(7 * i) % 12:02d}" for i in range(12)]  # not in the order of the files
    shown = [(i, repetition) for i in range(12) for repetition in range(2 + i % 3)]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    regions = ["IT", "V4", "IT", "V4", "IT", "V4", "IT"]
    made = NeuronRecordingAssembly(
        rng.normal(size=(7, len(shown), 1)),
        coords={
            "neuroid_id": ("neuroid", [f"n{i}" for i in range(7)]),
            "region": ("neuroid", regions),
            "animal": ("neuroid", ["Tito", "Chabo"] * 3 + ["Tito"]),
            "object_name": ("presentation", [OBJECTS[i % 4] for i, _ in shown]),
            "stimulus_id": ("presentation", [ids[i] for i, _ in shown]),
            "repetition": ("presentation", [repetition for _, repetition in shown]),
            "time_bin_start": ("time_bin", [70]),
            "time_bin_end": ("time_bin", [170]),
        },
        dims=["neuroid", "presentation", "time_bin"],
    )
    stimuli = StimulusSet({"stimulus_id": ids})
    stimuli.stimulus_paths = dict(zip(ids, image_files, strict=True))
    stimuli.identifier = "test"
    made.attrs["stimulus_set"] = stimuli
    return made


@pytest.fixture
def loaded(assembly: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """brainscore_vision.load_dataset gives the assembly and notes how it was called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import brainscore_vision
    import os

    calls: list[tuple[str, str | None]] = []

    def load_dataset(name: str) -> Any:
        calls.append((name, os.environ.get("BS_INSTALL_DEPENDENCIES")))
        return assembly

    monkeypatch.setattr(brainscore_vision, "load_dataset", load_dataset)
    monkeypatch.setattr(majaj, "majaj_cached", lambda: True)
    monkeypatch.delenv("BS_INSTALL_DEPENDENCIES", raising=False)
    yield calls
    assert calls == [("MajajHong2015.public", "no")]
    assert "BS_INSTALL_DEPENDENCIES" not in os.environ


@pytest.mark.brainscore
def test_means_and_repeats_against_a_loop(loaded: Any, assembly: Any, grey: Callable[[Image.Image], int]) -> None:
    made = load_majaj("IT")
    values = assembly.values[:, :, 0]
    stimulus, repetition = assembly["stimulus_id"].values, assembly["repetition"].values
    sites = [0, 2, 4, 6]
    assert made.repeats is not None
    assert made.repeats.shape == (12, 4, 4)
    for row, name in enumerate(made.images.ids):
        for column, site in enumerate(sites):
            single = {repetition[k]: values[site, k] for k in range(len(stimulus)) if stimulus[k] == name}
            assert made.responses[row, column] == pytest.approx(sum(single.values()) / len(single), rel=1e-12)
            for k in range(4):
                np.testing.assert_equal(made.repeats[row, column, k], single.get(k, np.nan))
    assert list(made.site_ids) == ["n0", "n2", "n4", "n6"]
    assert list(made.subjects) == ["Tito", "Tito", "Tito", "Tito"]  # type: ignore[arg-type]
    number = {f"id{(7 * i) % 12:02d}": i for i in range(12)}
    assert made.object_names is not None
    for row, name in enumerate(made.images.ids):
        assert grey(made.images.decode(row)) == 10 * number[name]
        assert made.object_names[row] == OBJECTS[number[name] % 4]


@pytest.mark.brainscore
def test_rows_and_means_as_brainscore_averages(loaded: Any, assembly: Any) -> None:
    """Its splits are by row number: the order must be its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brainscore_vision.benchmark_helpers.neural_common import average_repetition

        theirs = average_repetition(assembly.isel(time_bin=0).isel(neuroid=[1, 3, 5]).transpose("presentation", "neuroid"))
    made = load_majaj("V4")
    assert list(theirs["stimulus_id"].values) == list(made.images.ids)
    assert list(theirs["object_name"].values) == list(made.object_names)  # type: ignore[arg-type]
    np.testing.assert_allclose(theirs.transpose("presentation", "neuroid").values, made.responses, rtol=1e-12)


@pytest.mark.brainscore
def test_files_are_those_that_brainscore_fetches() -> None:
    from importlib.util import find_spec

    found = find_spec("brainscore_vision")
    if found is None or found.origin is None:
        pytest.skip("needs the brainscore extra")
    text = (Path(found.origin).parent / "data/majajhong2015/__init__.py").read_text()
    text = "".join(text.split())
    nc, csv, archive = majaj.FILES.values()
    assert f'identifier="dicarlo.MajajHong2015.public",version_id="null",sha1="{nc}"' in text
    assert (
        f'identifier="hvm-public",bucket="brainscore-storage/brainio-brainscore",csv_sha1="{csv}",zip_sha1="{archive}"'
        in text
    )


def test_region_and_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"region 'V1' is not known in MajajHong2015.public.*Known: V4, IT"):
        load_majaj("V1")
    monkeypatch.setattr(majaj, "majaj_cached", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "brainscore_vision", None)
    with pytest.raises(
        ImportError, match=r"MajajHong2015.public needs brainscore-vision .*pip install 'cnnf-brain\[brainscore\]'"
    ):
        load_majaj("V4")


@pytest.mark.brainscore
def test_a_failed_download_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("brainscore_vision", reason="needs the brainscore extra")
    import brainscore_vision

    def fail(name: str) -> None:
        raise Exception(["no credentials", "no route"])

    monkeypatch.setattr(brainscore_vision, "load_dataset", fail)
    monkeypatch.setattr(majaj, "public_available", lambda: (False, "no answer"))
    with pytest.raises(OSError, match=r"could not be downloaded or read .*no route.*or name other recordings"):
        load_majaj("V4")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As with the extra installed and an empty cache of brainscore's."""
    monkeypatch.setattr(majaj.importlib.util, "find_spec", lambda name: object())  # type: ignore[attr-defined]
    monkeypatch.setenv("BRAINIO_HOME", str(tmp_path / "brainio"))
    return tmp_path / "brainio"


def test_available_says_how_large_a_download_is(installed: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(majaj, "BASE_URL", server.url)
    for size, name in zip((2_000_000, 10, 1_499_990), majaj.FILES, strict=True):
        server.files[name] = bytes(size)
    assert public_available() == (True, "MajajHong2015.public can be downloaded (4 MB)")
    assert all(line.startswith("HEAD") for line in server.asked)
    del server.files["stimulus_hvm-public.zip"]
    there, why = public_available()
    assert not there
    assert "cannot be downloaded (" in why
    assert "404" in why


def test_available_from_the_cache(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(majaj, "BASE_URL", "http://127.0.0.1:1")
    for name, sha1 in majaj.FILES.items():
        assert not majaj.majaj_cached()
        (installed / sha1).mkdir(parents=True)
        (installed / sha1 / name).write_bytes(b"x")
    assert public_available() == (True, "MajajHong2015.public is in the cache")


def test_offline_it_decides_in_time(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "download_size", lambda *_, **__: time.sleep(30))  # as a host look-up that hangs
    start = time.monotonic()
    there, why = public_available()
    assert time.monotonic() - start < 10  # two seconds, and what a busy machine adds
    assert not there
    assert "no answer from https://brainscore-storage" in why
    monkeypatch.setattr(majaj.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    assert public_available()[0] is False
    assert "not installed" in public_available()[1]
