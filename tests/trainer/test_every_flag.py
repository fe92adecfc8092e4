"""Every flag of the feedback and of the losses reaches the network that is trained and the card of its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mnist_command import flags as mnist_flags
from test_mnist_command import mnist
from trainer.tiny_imagenet import flags as imagenet_flags
from trainer.tiny_imagenet import imagenet

from cnnf_brain.images import pick_device
from cnnf_brain.model.weights import read_card
from cnnf_brain.trainer.distributed import join

DEFAULTS = {
    "mnist": {"target": "input", "step": 1.0, "match_norm": True, "match_layers": False},
    "imagenet": {"target": "input", "step": 0.1, "match_norm": True, "match_layers": True},  # flags() gives the step
}
REST = {"ada_relu": "signed", "tolerance": None}
TARGET = {"mnist": "relu1", "imagenet": "features.0"}


pytestmark = pytest.mark.usefixtures("tiny_networks")


def train(trainer: str, make_folder: Any, images: Path, output: Path, *more: str) -> int:
    """A step or two of the trainer."""
    if trainer == "mnist":
        argv = mnist_flags(make_folder(), output, "--iterations", "1", "--limit", "30", *more, model="cnnf", epochs=1)
        return int(mnist.main(argv))
    return int(imagenet.main([*imagenet_flags(images, output, steps=1), *more]))


@pytest.mark.parametrize("trainer", ["mnist", "imagenet"])
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], {}),
        (["--iterations", "3"], {"iterations": 3}),
        (["--target", "TARGET"], {"target": "TARGET"}),
        (["--match-layers"], {"match_layers": True}),
        (["--ada-relu", "printed"], {"ada_relu": "printed"}),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (
                (["--step-size", "0.25"], {"step": 0.25}),
                (["--no-match-norm"], {"match_norm": False}),
                (["--no-match-layers"], {"match_layers": False}),
                (["--ada-relu", "signed"], {}),
            )
        ),
    ],
)
def test_the_card_holds_the_settings_of_the_feedback(
    make_folder: Any, images: Path, tmp_path: Path, trainer: str, more: Any, expected: Any
) -> None:
    more = [word.replace("TARGET", TARGET[trainer]) for word in more]
    expected = {name: TARGET[trainer] if value == "TARGET" else value for name, value in expected.items()}
    assert train(trainer, make_folder, images, tmp_path / "out", *more) == 0
    card = read_card(tmp_path / "out" / "model.safetensors")
    assert card.iterations == expected.pop("iterations", 1)
    assert dict(card.feedback) == {**DEFAULTS[trainer], **REST, **expected}
    configured = card.content["configuration"]["feedback"]
    assert ("ada_relu" in configured) == ("printed" in more)  # configurations from before the flag stay the same


@pytest.mark.parametrize("trainer", ["mnist", "imagenet"])
@pytest.mark.parametrize(
    ("more", "losses"),
    [
        ([], {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0}),
        (["--reconstruction-reduction", "mean"], {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0}),
        (
            ["--reconstruction", "0.5", "--reconstruction-reduction", "sum"],
            {"reconstruction": 0.5, "latent": 0.0, "norm": 0.0, "reduction": "sum"},
        ),
        (["--norm", "0.2"], {"reconstruction": 0.1, "latent": 0.0, "norm": 0.2, "norm_loss": 2}),
        (["--latent", "0.3", "--no-match-layers"], {"reconstruction": 0.1, "latent": 0.3, "norm": 0.0}),
    ],
)
def test_the_card_holds_the_settings_of_the_losses(
    make_folder: Any, images: Path, tmp_path: Path, trainer: str, more: Any, losses: Any
) -> None:
    assert train(trainer, make_folder, images, tmp_path / "out", *more) == 0
    assert read_card(tmp_path / "out" / "model.safetensors").content["configuration"]["losses"] == losses


@pytest.mark.parametrize("trainer", ["mnist", "imagenet"])
def test_the_reduction_reaches_the_logged_loss(make_folder: Any, images: Path, tmp_path: Path, trainer: str) -> None:
    logged = []
    for reduction in ("mean", "sum"):
        more = ("--reconstruction", "1e-9", "--reconstruction-reduction", reduction, "--seed", "5")
        more += ("--log-every", "1") if trainer == "imagenet" else ()  # type: ignore[assignment]
        assert train(trainer, lambda r=reduction: make_folder(r), images, tmp_path / f"out-{reduction}", *more) == 0
        lines = [json.loads(line) for line in (tmp_path / f"out-{reduction}" / "log.jsonl").read_text().splitlines()]
        logged.append(next(line["losses"]["reconstruction"] for line in lines if "losses" in line))
    elements = {"mnist": 28 * 28, "imagenet": 3 * 32 * 32}[trainer]
    assert logged[1][0] == 0
    assert logged[1][1] == pytest.approx(elements * logged[0][1], rel=1e-4)


@pytest.mark.parametrize("trainer", ["mnist", "imagenet"])
def test_auto_is_the_device_where_none_is_named(trainer: str) -> None:
    words = {"mnist": ["--dataset", "mnist"], "imagenet": ["--data", "."]}[trainer]
    args = (mnist if trainer == "mnist" else imagenet).arguments([*words, "--model", "cnn"])
    assert args.device == "auto"
    with join("auto") as ranks:
        assert ranks.device.type == pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("trainer", ["mnist", "imagenet"])
def test_auto_trains(make_folder: Any, images: Path, tmp_path: Path, trainer: str) -> None:
    assert train(trainer, make_folder, images, tmp_path / "out", "--device", "auto") == 0


@pytest.mark.parametrize("trainer", ["mnist", "imagenet"])
def test_without_optional_packages_a_run_says_so_at_its_start_and_ends_well(
    make_folder: Any,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trainer: str,
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard", "captum", "skimage", "art", "autoattack", "brainscore_vision"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train(trainer, make_folder, images, tmp_path / "out") == 0
    assert (tmp_path / "out" / "card.json").exists()
    assert (tmp_path / "out" / "report.html").exists()
    if trainer == "imagenet":
        told = capsys.readouterr().err
        assert 0 <= told.index("no TensorBoard files") < told.index("step 0/1  validation") < told.index("step 1/1  cross")
