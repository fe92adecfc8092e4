"""A linear head on convolutions, layers that keep their weights, and weights with image units of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_imagenet import SIZE, flags, imagenet, tiny
from torchvision import models

import cnnf_brain as cb
from cnnf_brain.datasets.image_batches import ShownImages
from cnnf_brain.datasets.image_index import index_images
from cnnf_brain.model.weights import HeadlessNetworkWarning, read_card
from cnnf_brain.networks import plan

FEATURES = "IMAGENET1K_FEATURES"
MEAN, STD = (0.48235, 0.45882, 0.40784), (1 / 255,) * 3  # of the original VGG-16, as torchvision states them


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "convolutions.safetensors"
    save_file({f"features.{name}": value for name, value in tiny("vgg16", 1).features.state_dict().items()}, path)
    return path


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What torchvision publishes as convolutions alone: a whole state dict whose classifier is NaN; here with small values, each
    tensor stored as one number."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with torch.device("meta"):
        expected = models.vgg16().state_dict()
    state = {
        name: torch.tensor(float("nan") if name.startswith("classifier") else 1e-4).expand(value.shape)
        for name, value in expected.items()
    }
    path = Path(torch.hub.get_dir(), "checkpoints", Path(models.VGG16_Weights[FEATURES].url).name)
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return {name: value for name, value in state.items() if name.startswith("features")}


def test_a_linear_head_is_the_mean_of_the_map_and_one_matrix() -> None:
    model = cb.vgg16(iterations=0, num_classes=7, head="linear").double()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    features = model.features(x)
    expected = features.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert model.layer_names[-1] == "classifier"
    with pytest.raises(ValueError, match="head 'wide' is not known"):
        cb.vgg16(head="wide")


@pytest.mark.usefixtures("tiny_networks")
def test_only_what_lies_above_the_held_layer_is_trained(
    images: Path, convolutions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--weights", convolutions, "--head", "linear")
    head = tmp_path / "head"
    assert imagenet.main(flags(images, head, *common, "--hold", "features.2")) == 0
    assert "layers up to features.2 keep their weights" in capsys.readouterr().out
    before, after = load_file(convolutions), load_file(head / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(after) == {*before, "classifier.weight", "classifier.bias"}

    # the card says which head, so that every way of loading finds it
    weights = str(head / "model.safetensors")
    assert read_card(weights).head == "linear"
    network = cb.load_network("vgg16", weights, image_size=SIZE)
    assert torch.equal(network.module.classifier.weight, after["classifier.weight"])  # type: ignore[arg-type]
    assert isinstance(plan("vgg16", weights).skeleton().module.get_submodule("classifier"), torch.nn.Linear)

    # both are trained where none is held
    free = tmp_path / "free"
    assert imagenet.main(flags(images, free, "--weights", weights, "--head", "linear")) == 0
    changed = load_file(free / "model.safetensors")
    assert not any(torch.equal(changed[name], value) for name, value in after.items())


@pytest.mark.usefixtures("tiny_networks")
def test_a_held_run_is_continued_as_it_was(images: Path, convolutions: Path, tmp_path: Path) -> None:
    common = ("--weights", convolutions, "--head", "linear", "--hold", "features.2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert imagenet.main(flags(images, whole, *common, "--steps", 4)) == 0
    assert imagenet.main(flags(images, parts, *common, "--steps", 2)) == 0
    assert imagenet.main(flags(images, parts, *common, "--steps", 4)) == 0
    expected = load_file(whole / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in load_file(parts / "model.safetensors").items())
    with pytest.raises(SystemExit):
        imagenet.main(flags(images, parts, *common, "--head", "wide"))


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize(
    ("layer", "message"),
    [("classifier", "no layer above it has weights"), ("features.99", "layer 'features.99' is not known")],
)
def test_layers_that_cannot_be_held(
    images: Path, convolutions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: str, message: str
) -> None:
    argv = flags(images, tmp_path / "out", "--weights", convolutions, "--head", "linear", "--hold", layer)
    assert imagenet.main(argv) == 1
    assert message in capsys.readouterr().err


def test_published_convolutions_are_headless_with_units_of_their_own(published: dict[str, torch.Tensor]) -> None:
    with pytest.warns(HeadlessNetworkWarning, match="IMAGENET1K_FEATURES holds the convolutions of vgg16 alone"):
        model = cb.vgg16(FEATURES)
    state = model.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], value) for name, value in published.items())
    network = cb.load_network("vgg16", FEATURES)
    assert network.headless
    assert (network.preprocessing.mean, network.preprocessing.std) == (MEAN, STD)
    assert cb.load_network("vgg16", iterations=0, weights="none").preprocessing == cb.Preprocessing(224)

    plain = cb.load_network("torchvision:vgg16", FEATURES, image_size=32)
    assert plain.headless
    assert (plain.preprocessing.mean, plain.preprocessing.std) == (MEAN, STD)
    x = torch.rand(1, 3, 32, 32)
    assert plain.module(x).isfinite().all()
    torch.testing.assert_close(plain.module(x), network.module(x, iterations=0).mean((2, 3)).repeat_interleave(49, 1))


@pytest.mark.usefixtures("published")
def test_published_convolutions_have_no_accuracy(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imagenet.main(["--data", str(images), "--evaluate", "--weights", FEATURES]) == 1
    assert "convolutions without a classifier, and have no top-1" in capsys.readouterr().err


@pytest.mark.slow
def test_training_shows_images_in_the_units_of_its_start(
    images: Path, tmp_path: Path, published: dict[str, torch.Tensor]
) -> None:
    """The classifier on published convolutions sees the images as these do, and so does whoever loads the result, or trains on."""
    first, second = tmp_path / "first", tmp_path / "second"
    small = ("--image-size", 32, "--head", "linear", "--hold", "features.30")
    weights = str(first / "model.safetensors")
    assert imagenet.main(flags(images, first, "--weights", FEATURES, *small, model="cnn", steps=1)) == 0
    assert imagenet.main(flags(images, second, "--weights", weights, *small, model="cnn", steps=1)) == 0
    for folder in (first, second):
        network = cb.load_network("vgg16", str(folder / "model.safetensors"))
        assert (network.preprocessing.mean, network.preprocessing.std) == (MEAN, STD)
        assert json.loads((folder / "card.json").read_text())["mean"] == list(MEAN)

    _, validation = index_images(images)
    shown = ShownImages(validation, 32)[range(len(validation)), [False] * len(validation)]
    x = (shown.images / 255 - torch.tensor(MEAN)[:, None, None]) * 255
    network = cb.load_network("vgg16", weights)
    with torch.no_grad():
        right = (network.module(x).argmax(1) == shown.labels).double().mean().item()
    assert network.card.top1 == (pytest.approx(right),)  # type: ignore[comparison-overlap]
