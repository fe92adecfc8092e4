"""Names that another package adds (tests/plugin): a network, recordings, a metric, an attack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cnnf_brain as cb
from cnnf_brain import checks, cli, recordings
from cnnf_brain.attacks import PGD, load_attack
from cnnf_brain.compare import __main__ as compare
from cnnf_brain.types import Scores

PLUGIN = Path(__file__).parent / "plugin"
ENTRY = "[cnnf_brain.networks]\nlab-net = other_lab:Net\n"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package, as if it were installed."""
    monkeypatch.syspath_prepend(str(PLUGIN))


def test_nothing_is_added_without_packages() -> None:
    assert checks.offered("networks") == {}
    with pytest.raises(ValueError, match="model 'lab-net' is not known"):
        cb.load_network("lab-net")


@pytest.mark.usefixtures("plugin")
def test_a_network_by_name() -> None:
    network = cb.load_network("lab-net", device="cpu")
    assert (network.name, network.layer_of("V4"), network.preprocessing.size) == ("lab-net", "1", 16)
    assert [layer.shape for layer in cb.list_layers(network)] == [(4, 14, 14), (4, 14, 14)]
    assert network.identity  # by its class's source: its features can be cached


@pytest.mark.usefixtures("plugin")
def test_recordings_by_name() -> None:
    found = cb.load_recordings("lab-sessions")
    assert isinstance(found, cb.Recordings)
    assert (found.region, found.responses.shape) == ("V4", (40, 3))
    assert [one.region for one in recordings.load(["V4=lab-sessions"], ["V4"])["V4"]] == ["V4"]
    with pytest.raises(ValueError, match="region 'IT' is not known in lab-sessions"):
        recordings.check_sources(["lab-sessions"], ["IT"])


@pytest.mark.usefixtures("plugin")
def test_an_attack_by_name() -> None:
    assert load_attack("lab-attack") == PGD(3)
    assert load_attack("PGD-40") == PGD(40)


@pytest.mark.usefixtures("plugin")
def test_a_metric_by_name(tmp_path: Path) -> None:
    """In Python and on the command line: a pixel predicts itself through its nearest neighbour, noise does not."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8).repeat(10, axis=0)  # each image ten times
    known = cb.Recordings.from_arrays(images[:, 0, :3, 0].astype(float), images, region="V4", source="pixels")
    network = cb.load_network("lab-net", device="cpu")
    (row,) = cb.compare(network, None, known, "0", scoring="lab-nearest", progress=False).evaluations
    assert isinstance(row.scores, Scores)
    assert (row.metric, row.scores.r.shape) == ("lab-nearest", (10, 3))
    assert np.nanmin(row.scores.r) > 1 - 1e-9
    words = ["--layers", "V4", "--model", "lab-net", "--recordings", "V4=lab-sessions", "--metric", "lab-nearest", "rsa"]
    assert compare.main([*words, "--baseline", "none", "--output", str(tmp_path / "run")]) == 0
    found = cb.Comparison.load(tmp_path / "run")
    assert {one.metric for one in found.evaluations} == {"lab-nearest", "rsa"}
    assert "lab-nearest: the responses to the nearest training image" in found.markdown()


def test_results_of_a_metric_whose_package_is_gone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.syspath_prepend(str(PLUGIN))
        network, recordings = cb.load_network("lab-net", device="cpu"), cb.load_recordings("lab-sessions")
        made = cb.compare(network, None, recordings, "0", scoring=cb.Scoring(metric="lab-nearest"), progress=False)
        made.write(tmp_path)
    assert "lab-nearest" in cb.Comparison.load(tmp_path).markdown()


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("wrong", "offered"),
    [
        (lambda: cb.load_network("lab-nets"), "did you mean 'lab-net'"),
        (lambda: cb.load_recordings("lab-session"), "did you mean lab-sessions"),
        (lambda: load_attack("lab-attacks"), "did you mean 'lab-attack'"),
        (lambda: cb.Scoring(metric="lab-near"), "metric 'lab-near' is not known; did you mean 'lab-nearest'.* Known: pls, "),
        (lambda: cb.Scoring(metric="lab-wrong"), "metric 'lab-wrong' is a PGD, expected a Regression or an Agreement"),
        (lambda: cb.load_network("no such thing"), "Known: .*lab-net"),
        (lambda: load_attack("no such thing"), "Known: FGSM, .*lab-attack"),
    ],
)
def test_an_unknown_name_lists_what_packages_add(wrong: object, offered: str) -> None:
    assert callable(wrong)
    with pytest.raises((ValueError, FileNotFoundError), match=offered):
        wrong()


@pytest.mark.usefixtures("plugin")
def test_what_cannot_be_imported_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: len(str(cb.load_recordings("lab-lost")))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "'lab-lost' (example_lab:no_such_thing), which an installed package adds to the recordings, cannot be" in line


@pytest.mark.usefixtures("plugin")
def test_a_name_that_two_packages_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "other_lab-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other-lab\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(ENTRY)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"'lab-net' is added by two packages, as .*other_lab:Net"):
        cb.load_network("lab-net")


@pytest.mark.usefixtures("plugin")
def test_brain_score_gets_no_network_of_another_package() -> None:
    from cnnf_brain.brainscore.vendor import read_own_code  # Brain-Score is imported within tests alone

    with pytest.raises(ValueError, match="lab-net comes from another package"):
        read_own_code("lab-net")
