"""A finished run is said to be so only where its weights are whole and the ones that its card speaks of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_mnist_command import flags as mnist_flags
from test_mnist_command import mnist
from trainer.idx_files import write_idx
from trainer.tiny_imagenet import flags as imagenet_flags
from trainer.tiny_imagenet import imagenet, tiny, write_images

from cnnf_brain.io import sha256
from cnnf_brain.model import zoo
from cnnf_brain.trainer import small

Run = Callable[[], int]


pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module", params=["mnist", "imagenet"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[Path], int]]:
    """The folder of a finished run, and its command for any folder."""
    root = tmp_path_factory.mktemp(request.param)

    def run(output: Path) -> int:
        if request.param == "mnist":
            more = ("--half", "--iterations", "1", "--limit", "60")
            return int(mnist.main(mnist_flags(root / "data", output, *more, model="cnnf", epochs=1)))
        return int(imagenet.main(imagenet_flags(root / "data", output, steps=3)))

    (write_idx if request.param == "mnist" else write_images)(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "sequential", tiny)
        assert run(root / "out") == 0
    return root / "out", run


@pytest.fixture
def finished(trained: tuple[Path, Callable[[Path], int]], tmp_path: Path) -> tuple[Path, Run]:
    """A copy of the folder of a finished run, and its command again."""
    output = Path(shutil.copytree(trained[0], tmp_path / "out"))
    return output, lambda: trained[1](output)


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def flipped(path: Path) -> None:
    """One bit of one weight, which no reader of the format notices."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replaced(path: Path) -> None:
    """Other weights of the same network, without a card."""
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path)


def forget_the_hash(output: Path) -> None:
    """The card as it was written before it had the hash."""
    card = json.loads((output / "card.json").read_text())
    card.pop("weights_sha256", None)
    (output / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("damage", [gone, flipped, *(pytest.param(one, marks=pytest.mark.slow) for one in (cut, replaced))])
def test_lost_weights_are_restored_byte_for_byte_from_the_last_checkpoint(
    finished: Any, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    output, run = finished
    path, card = output / "model.safetensors", (output / "card.json").read_bytes()
    before = path.read_bytes()
    damage(path)
    capsys.readouterr()
    assert run() == 0
    printed = capsys.readouterr().out
    assert "restored from" in printed
    assert "already finished" not in printed
    assert path.read_bytes() == before
    assert (output / "card.json").read_bytes() == card
    assert run() == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gone, "is gone"),
        (flipped, "damaged or was replaced"),
        pytest.param(cut, "damaged or was replaced", marks=pytest.mark.slow),
        pytest.param(replaced, "was replaced", marks=pytest.mark.slow),
    ],
)
def test_lost_weights_without_a_checkpoint_of_the_last_step_are_an_error(
    finished: Any, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    output, run = finished
    damage(output / "model.safetensors")
    shutil.rmtree(output / "checkpoints")
    capsys.readouterr()
    assert run() == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert "has no checkpoint of the run's last step; put the file back, or remove" in printed.err
    assert printed.err.count("\n") == 1
    assert "already finished" not in printed.out


def test_a_checkpoint_of_other_weights_restores_nothing(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    output, run = finished
    card: dict[str, Any] = json.loads((output / "card.json").read_text())
    (output / "card.json").write_text(json.dumps(card | {"weights_sha256": "0" * 64}))
    before = (output / "model.safetensors").read_bytes()
    assert run() == 1
    assert "are not those that the card speaks of" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("damage", "lost"), [(gone, True), (cut, True), (replaced, True), (lambda path: None, False)])
def test_a_card_without_a_hash_wants_a_file_that_loads_fits_and_is_of_this_run(
    finished: Any, capsys: pytest.CaptureFixture[str], damage: Any, lost: bool
) -> None:
    output, run = finished
    forget_the_hash(output)
    before = (output / "model.safetensors").read_bytes()
    damage(output / "model.safetensors")
    capsys.readouterr()
    assert run() == 0
    printed = capsys.readouterr().out
    assert ("restored from" in printed, "already finished" in printed) == (lost, not lost)
    assert (output / "model.safetensors").read_bytes() == before
    if lost:
        assert json.loads((output / "card.json").read_text())["weights_sha256"] == sha256(output / "model.safetensors")


def test_weights_of_another_network_are_no_result_of_a_card_without_a_hash(
    finished: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    output, run = finished
    forget_the_hash(output)
    shutil.rmtree(output / "checkpoints")
    save_file({"other.weight": torch.zeros(3)}, output / "model.safetensors")
    assert run() == 1
    assert "does not fit the network" in capsys.readouterr().err


def test_lost_weights_are_not_loaded(make_folder: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert mnist.main(mnist_flags(make_folder(), output, epochs=1)) == 0
    assert small.load(output)[1]["weights_sha256"] == sha256(output / "model.safetensors")
    flipped(output / "model.safetensors")
    with pytest.raises(ValueError, match="is damaged or was replaced"):
        small.load(output)


def test_a_run_told_to_end_where_it_was_stopped_reports_the_weights_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last validation before the stop was of other weights."""
    from test_imagenet_command import StopAt

    images, output = write_images(tmp_path / "images"), tmp_path / "out"
    monkeypatch.setattr(imagenet, "Stop", lambda: StopAt(4))
    assert imagenet.main(imagenet_flags(images, output, "--validate-every", 3, "--lr", 1.0, steps=9)) == 75
    monkeypatch.setattr(imagenet, "Stop", lambda: StopAt(99))
    assert imagenet.main(imagenet_flags(images, output, "--validate-every", 3, "--lr", 1.0, steps=4)) == 0
    card = json.loads((output / "card.json").read_text())
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert card["step"] == 4
    assert list(judged) == [0, 3, 4]
    assert card["validation_accuracy"] == judged[4]["top1"]
