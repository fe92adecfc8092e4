"""``python -m cnnf_brain.visualize``: what it leaves, whose folders it takes, which weights, bad input."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from visualize import small

from cnnf_brain import cli, small_net
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.report import PAGE, readers
from cnnf_brain.report.__main__ import main as report
from cnnf_brain.trainer.checkpoint import save_weights
from cnnf_brain.visualize import __main__ as command
from cnnf_brain.visualize import view
from cnnf_brain.visualize.__main__ import main

DEFAULT = Path("results", "figure-9c")


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(path: Path, **settings: Any) -> CNNF:
    """A small net with its card, as the trainer saves it."""
    torch.manual_seed(0)
    network = small_net(**settings)
    save_weights(path, network, {"feedback": network.settings.as_dict()})
    return network


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sketched: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command on a small data set, in a folder of its own, without drawing."""
    monkeypatch.chdir(tmp_path)
    small.idx_folder(tmp_path / "data")

    def command(*words: Any) -> int:
        return main([*map(str, words), "--dataset", "mnist", "--data", "data"])

    return command


def test_the_command_leaves_a_page(
    run: Callable[..., int], sketched: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sketched.undo()
    assert run("--figure", "9c", "--images", 3) == 0
    said = capsys.readouterr().out
    folder = tmp_path / DEFAULT
    record = json.loads((folder / "run.json").read_text())
    assert record["kind"] == "visualize"
    asked = record["configuration"]
    assert (asked["figure"], asked["images"], asked["seed"]) == ("9c", 3, 0)
    assert asked["feedback"]["iterations"] == 2
    assert len(asked["network"]) == len(asked["data"]) == 64
    assert record["data"]["dataset"] == "mnist"
    assert said.startswith(readers.read(folder).answer)
    assert f"see {DEFAULT / PAGE}" in said
    names = {"run.json", "summary.json", "claims.md", "table.csv", "examples.nc", "figure.svg", "figure.png", PAGE}
    assert set(content(tmp_path / "results")) == {f"figure-9c/{name}" for name in names}, "and no lock, no staging folder"


def test_the_page_is_that_of_the_final_folder(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--figure", "9c", "--images", 3) == 0
    page = (tmp_path / DEFAULT / PAGE).read_bytes()
    assert b"<dt>folder</dt><dd>figure-9c</dd>" in page
    assert str(tmp_path).encode() not in page
    assert report([str(tmp_path / DEFAULT)]) == 0
    assert (tmp_path / DEFAULT / PAGE).read_bytes() == page, "made again from the folder, it is the same"


# Whose folder


def test_the_same_question_takes_the_place_of_its_old_results(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--figure", "9c", "--images", 3) == 0
    table = (tmp_path / DEFAULT / "table.csv").read_bytes()
    (tmp_path / DEFAULT / "table.csv").write_text("damaged")
    (tmp_path / DEFAULT / "notes.txt").write_text("mine")
    assert run("--figure", "9c", "--images", 3) == 0
    assert (tmp_path / DEFAULT / "table.csv").read_bytes() == table
    assert (tmp_path / DEFAULT / "notes.txt").read_text() == "mine"


def test_folders_of_something_else_are_left_alone(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--figure", "9c", "--images", 3) == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "summary.json").write_text("{}")
    (tmp_path / "compared").mkdir()
    record = json.loads((tmp_path / DEFAULT / "run.json").read_text())
    (tmp_path / "compared" / "run.json").write_text(json.dumps({**record, "kind": "compare"}))
    before = content(tmp_path)
    for folder, more, words in (
        ("home", (), "is not empty and not the results of this command"),
        ("compared", (), "holds the results of compare, not of visualize"),
        (DEFAULT, ("--seed", 1), "holds the results of another question (seed: 0 there, 1 now)"),
        (DEFAULT, ("--iterations", 1), "another question (feedback.iterations: 2 there, 1 now)"),
    ):
        capsys.readouterr()
        assert run("--figure", "9c", "--images", 3, "--output", folder, *more) == 1
        assert words in capsys.readouterr().err
    assert content(tmp_path) == before


def test_an_error_leaves_the_old_results_and_no_empty_folder(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path, text: str) -> None:
        folder.with_name("claims.md").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(view, "write_text", full)
    assert run("--figure", "9c", "--images", 3) == 1
    assert "error: disk full" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run("--figure", "9c", "--images", 3) == 0
    before = content(tmp_path / "results")
    monkeypatch.setattr(view, "write_text", full)
    assert run("--figure", "9c", "--images", 3) == 1
    assert content(tmp_path / "results") == before


# Weights


def test_iterations_are_those_of_the_card_unless_given(tmp_path: Path) -> None:
    weights(tmp_path / "three.safetensors", iterations=3, step=0.25, match_norm=True)
    path = str(tmp_path / "three.safetensors")
    as_trained = command.load(path, None, "cpu")
    assert (as_trained.iterations, as_trained.module.settings.step) == (3, 0.25)
    assert command.load(path, 1, "cpu").iterations == 1
    assert command.load(None, None, "auto").iterations == 2


def test_a_network_without_feedback(run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights(tmp_path / "cnn.safetensors", iterations=0)
    assert run("--figure", "9a", "--weights", "cnn.safetensors") == 1
    said = capsys.readouterr().err
    assert "by its card this network was trained without feedback" in said
    assert not (tmp_path / "results").exists()


def test_weights_that_do_not_say_how_they_were_trained(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = small_net(iterations=2)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    assert run("--figure", "9c", "--images", 3, "--weights", "bare.pt") == 1
    assert "no card in it says how many iterations it was trained with; give --iterations" in capsys.readouterr().err
    assert run("--figure", "9c", "--images", 3, "--weights", "bare.pt", "--iterations", 1) == 0


def test_an_empty_name_is_not_the_shipped_network(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--figure", "9c", "--images", 3, "--weights", "")
    assert caught.value.code == 2
    assert "--weights is empty; name a file" in capsys.readouterr().err


# Bad input


def test_images_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    small.idx_folder(tmp_path / "data", side=32)
    assert main(["--figure", "9d", "--dataset", "mnist", "--data", "data"]) == 1
    assert "images of 32 x 32 pixels, the network takes 28 x 28" in capsys.readouterr().err


def test_more_images_than_there_are(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--figure", "9d", "--images", 21) == 1
    assert "21 images are asked for and there are 20; give fewer" in capsys.readouterr().err


def test_libraries_are_checked_before_data_are_read(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "captum" else real(name))
    monkeypatch.setattr(command.mnist, "find", lambda *given: pytest.fail("data were looked for"))  # type: ignore[attr-defined]
    assert run("--figure", "9b") == 1
    assert "figure 9b needs captum: pip install 'cnnf-brain[visualize]'" in capsys.readouterr().err


def test_a_device_that_is_not_there(run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("--figure", "9c", "--device", "gpu7") == 1
    assert "device 'gpu7' cannot be used here" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_same_from_the_console_script(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--figure", "9c", "--images", "3", "--dataset", "mnist", "--data", "data"]
    assert cli.main(["visualize", *words]) == 0
    assert cli.main(["report", str(tmp_path / DEFAULT)]) == 0
    assert capsys.readouterr().out.endswith(f"written: {tmp_path / DEFAULT / PAGE}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--figure", "9e"],
        [],
        ["--figure", "9a", "--images", "0"],
        ["--figure", "9a", "--seed", "-1"],
        ["--figure", "9a", "--iterations", "0"],
    ],
)
def test_flags_that_are_not_understood(words: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
