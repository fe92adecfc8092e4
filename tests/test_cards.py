"""Weights of the real trainers, through every command and function: the network that was trained, bit for bit.

Each case trains a few steps with one flag of the trainer changed. What the trainer's own network gave is noted when it finishes;
whatever reads its weights afterwards, without being told anything, must give the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from trainer.idx_files import write_idx
from trainer.tiny_imagenet import SIZE, flags, imagenet, tiny, write_images

import cnnf_brain
from cnnf_brain import CNNF
from cnnf_brain.activations import features
from cnnf_brain.compare import __main__ as compare
from cnnf_brain.compare import choice
from cnnf_brain.model import zoo
from cnnf_brain.model.weights import WEIGHTS, read_card
from cnnf_brain.networks import CHANGED, TRAINED, Network, load_network
from cnnf_brain.train import small as _mnist
from cnnf_brain.trainer import checkpoint as card_files
from cnnf_brain.trainer import small
from cnnf_brain.types import LayerAt

mnist: Any = _mnist


def outputs(model: CNNF, x: Tensor) -> Tensor:
    """(N+1, B, K), in evaluation mode."""
    training = model.training
    with torch.no_grad():
        found = model.eval().unroll(x).logits
    model.train(training)
    return found


def note_outputs(monkeypatch: pytest.MonkeyPatch, shown: Callable[[dict[str, Any]], Tensor]) -> list[Tensor]:
    """What the trainers' networks give for the images ``shown(card)`` when their weights are stored, run by run."""
    seen: list[Tensor] = []
    save = card_files.save_weights

    def noted(path: Path, model: CNNF, card: dict[str, Any], *rest: Any) -> None:
        if path.name == WEIGHTS:
            seen.append(outputs(model, shown(card)))
        save(path, model, card, *rest)

    monkeypatch.setattr(card_files, "save_weights", noted)
    return seen


def small_images() -> Tensor:
    return torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


def imagenet_images(size: int = SIZE) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"))


SMALL = {
    "as it is": [],
    "iterations": ["--iterations", "5"],
    "target": ["--target", "relu1"],
    "step": ["--step-size", "0.1"],
    "norm not matched": ["--no-match-norm"],
    "layers matched": ["--match-layers"],
    "printed": ["--ada-relu", "printed"],
    "l2": ["--normalisation", "l2"],
    "half": ["--half"],
    "losses": ["--latent", "0.1", "--norm", "0.05", "--reconstruction", "0.5"],
    "summed": ["--reconstruction-reduction", "sum"],
    "adversarial": ["--adversarial", "augment", "--attack", "fgsm", "--epsilon", "0.1"],
    "CNN": ["--model", "cnn"],
}


def cases(names: Iterable[str], fast: set[str]) -> list[Any]:
    """As parameters, slow ones but for a few."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(params=cases(SMALL, {"as it is", "target", "printed", "half", "CNN"}), scope="module")
def trained_small(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, idx_folder: Path
) -> tuple[Path, Tensor]:
    """The folder of a run of training/mnist.py, and what its network gives for ``small_images``."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["--dataset", "fashion", "--model", "cnnf", "--data", str(idx_folder), "--epochs", "1", "--batch-size", "64"]
    words += ["--device", "cpu", "--limit", "64", "--output", str(folder), *SMALL[request.param]]
    with pytest.MonkeyPatch.context() as patch:
        seen = note_outputs(patch, lambda card: small_images())
        assert mnist.main(words) == 0
    return folder, seen[0]


def test_small_networks_come_back_bit_for_bit(trained_small: tuple[Path, Tensor]) -> None:
    folder, expected = trained_small
    path = str(folder / "model.safetensors")
    card = read_card(path)
    network = load_network("small", path, device="cpu")
    assert network.iterations == len(expected) - 1 == card.iterations
    assert torch.equal(outputs(network.module, small_images()), expected), "load_network"  # type: ignore[arg-type]
    assert network.feedback == (TRAINED if card.iterations else "")
    assert torch.equal(outputs(small.load(folder)[0], small_images()), expected), "robustness"
    plain = cnnf_brain.small_net(path).to(memory_format=torch.channels_last)
    assert torch.equal(outputs(plain, small_images()), expected), "the function itself"
    (model,), _ = choice.choose([("small", path)], baseline="none").load("cpu")
    assert torch.equal(outputs(model.module, small_images()), expected), "compare"  # type: ignore[arg-type]
    if card.iterations:
        from cnnf_brain.visualize.__main__ import load

        assert torch.equal(outputs(load(path, None, "cpu").module, small_images()), expected), "visualize"  # type: ignore[arg-type]
        changed = load_network("small", path, feedback={"step": 0.77}, device="cpu")
        assert (changed.module.step, changed.feedback) == (0.77, CHANGED), "what is given overrides the card"  # type: ignore[comparison-overlap]


@pytest.mark.brainscore
def test_a_plugin_scores_the_network_that_was_trained(trained_small: tuple[Path, Tensor], homes: Path) -> None:
    from cnnf_brain.brainscore.plugin import Request, identify

    folder, expected = trained_small
    regions = dict.fromkeys(("V1", "V2", "V4", "IT"), "relu3")
    request = Request(model="small", weights=folder / "model.safetensors", neural_only=True, regions=regions)
    plugin = identify(request)
    again = plugin.identity.load(str(folder / "model.safetensors"), device="cpu")  # type: ignore[arg-type]
    assert torch.equal(outputs(again.module, small_images()), expected)  # type: ignore[arg-type]


IMAGENET = {
    "as it is": [],
    "iterations": ["--iterations", 3],
    "target": ["--target", "features.2"],
    "step": ["--step-size", 0.7],
    "norm not matched": ["--no-match-norm"],
    "layers not matched": ["--no-match-layers", "--lr", 0.0001],
    "printed": ["--ada-relu", "printed"],
    "image size": ["--image-size", 40],
    "cropped": ["--image-size", 32, "--resize", 40],
    "channels last": ["--channels-last"],
    "another head": ["--num-classes", 5],
    "clip": ["--clip", 1.0, "--weight-decay", 0.01, "--momentum", 0.5],
    "CNN": ["--model", "cnn"],
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def run_imagenet(monkeypatch: pytest.MonkeyPatch, data: Path, output: Path, more: list[Any]) -> Tensor:
    seen = note_outputs(monkeypatch, lambda card: imagenet_images(card["image_size"]))
    monkeypatch.setattr(zoo, "sequential", tiny)
    model = more[more.index("--model") + 1] if "--model" in more else "cnnf"
    rest = [word for i, word in enumerate(more) if "--model" not in (word, more[i - 1] if i else "")]
    assert imagenet.main(flags(data, output, *rest, model=model, steps=2)) == 0
    return seen[-1]


@pytest.mark.parametrize("name", cases(IMAGENET, {"as it is", "target", "cropped", "another head", "CNN"}))
def test_imagenet_networks_come_back_bit_for_bit(
    name: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_imagenet(monkeypatch, pictures, tmp_path / "run", IMAGENET[name])  # type: ignore[arg-type]
    path = str(tmp_path / "run" / "model.safetensors")
    card = read_card(path)
    network = load_network("vgg16", path, device="cpu")
    assert network.preprocessing.size == card.image_size
    assert network.preprocessing.resize is None, "recordings' stimuli are shown whole"
    x = imagenet_images(card.image_size)
    last = torch.channels_last if name == "channels last" else torch.contiguous_format
    found = {
        "load_network": network.module,
        "the function itself": cnnf_brain.vgg16(path),
        "compare": choice.choose([("vgg16", path)], baseline="none").load("cpu")[0][0].module,
    }
    for what, module in found.items():
        assert torch.equal(outputs(module.to(memory_format=last), x), expected), what  # type: ignore[arg-type]
    assert json.loads((tmp_path / "run" / "card.json").read_text())["validation_accuracy"] == list(card.top1)


def test_the_baseline_is_what_training_started_from(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file by its path and hash; a start from random weights names none, and the published ones stand in."""
    run_imagenet(monkeypatch, pictures, tmp_path / "first", [])
    begin = tmp_path / "first" / "model.safetensors"
    words = flags(pictures, tmp_path / "second", steps=2)
    words[words.index("--weights") + 1] = str(begin)
    assert imagenet.main(words) == 0
    trained = str(tmp_path / "second" / "model.safetensors")
    assert read_card(trained).started_from == str(begin)
    chosen = choice.choose([("vgg16", trained)])
    assert (chosen.baseline.weights, chosen.baseline.iterations) == (str(begin), 0)
    (model,), baseline = chosen.load("cpu")
    assert baseline.preprocessing.size == model.preprocessing.size == SIZE
    assert torch.equal(baseline.module.features[0].weight, safetensors.torch.load_file(begin)["features.0.weight"])
    assert choice.choose([("vgg16", str(begin))]).baseline.source == "IMAGENET1K_V1"
    begin.rename(begin.with_suffix(".gone"))
    with pytest.raises(
        ValueError, match=r"training started from .*model.safetensors, which is not there; give the baseline's"
    ):
        choice.choose([("vgg16", trained)])
    torch.save({}, begin)
    with pytest.raises(ValueError, match="which is another file now"):
        choice.choose([("vgg16", trained)])


def test_a_card_of_another_network_is_refused(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_imagenet(monkeypatch, pictures, tmp_path / "run", [])
    path = str(tmp_path / "run" / "model.safetensors")
    for load in (
        lambda: load_network("alexnet", path),
        lambda: load_network("small", path),
        lambda: cnnf_brain.alexnet(path),
    ):
        with pytest.raises(ValueError, match="by their card they are of vgg16, not of"):
            load()


def test_compare_takes_all_iterations_of_the_training(trained_small: tuple[Path, Tensor]) -> None:
    folder, expected = trained_small
    options = compare.Options(model=("small",), weights=(str(folder / "model.safetensors"),), layers=("IT",))
    (skeleton,), _ = compare.choose_networks(options).skeletons
    assert skeleton.iterations == len(expected) - 1


def test_features_are_those_of_the_trainer_s_network(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the path of ``compare``: an image file, preprocessing, features at an iteration."""
    run_imagenet(monkeypatch, pictures, tmp_path / "run", [])
    network = load_network("vgg16", str(tmp_path / "run" / "model.safetensors"), device="cpu")
    from cnnf_brain.datasets.image_batches import ShownImages, normalise
    from cnnf_brain.datasets.image_index import index_images

    _, validation = index_images(pictures)
    shown = normalise(ShownImages(validation, SIZE)[np.arange(4), np.zeros(4, bool)].images)
    from PIL import Image

    files = [validation.path(i) for i in range(4)]
    mine = torch.stack([network.preprocessing(Image.open(file)) for file in files])
    assert torch.equal(mine, shown), "square images are shown alike"
    assert isinstance(network, Network)
    at = LayerAt("classifier.3", 1)
    expected = outputs(network.module, shown)[1]  # type: ignore[arg-type]
    assert np.array_equal(features(network, mine, [at])[at], expected.numpy())
