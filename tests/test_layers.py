"""The layers of a network with their shapes: the function, and the command that prints them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cnnf_brain import Network, Preprocessing, list_layers
from cnnf_brain.activations import Layer
from cnnf_brain.layers import main
from cnnf_brain.networks import plan


class Odd(nn.Module):
    """Two layers that can be scored; one that is not called, one that returns a pair, one that loses the images' axis."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Conv2d(4, 5, 2), nn.Conv2d(1, 4, 3)
        self.unused = nn.ReLU()
        self.pair = nn.LSTM(36, 2)
        self.flat = nn.Flatten(0)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.second(self.first(x))
        self.pair(maps.flatten(2))
        result: Tensor = self.flat(maps).sum()[None, None]
        return result


def test_what_can_be_scored_in_the_order_of_the_image() -> None:
    network = Network(Odd(), Preprocessing(9, (0.5,), (0.5,)))
    assert list_layers(network) == [Layer("first", "Conv2d", (4, 7, 7)), Layer("second", "Conv2d", (5, 6, 6))]


def test_vgg16_by_its_architecture_without_weights() -> None:
    network = plan("vgg16", "none").skeleton()
    assert network.device == torch.device("meta")
    found = {layer.name: (layer.kind, layer.shape) for layer in list_layers(network)}
    assert found["features.0"] == ("Conv2d", (64, 224, 224))
    assert [found[f"features.{k}"] for k in (4, 9, 16, 23, 30)] == [
        ("MaxPool2d", (channels, side, side)) for channels, side in ((64, 112), (128, 56), (256, 28), (512, 14), (512, 7))
    ]
    assert found["flatten"] == ("Flatten", (512 * 7 * 7,))
    assert list(found)[-1] == "classifier.6"
    assert found["classifier.6"] == ("Linear", (1000,))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["small"]) == 0
    first, head, _, *lines = capsys.readouterr().out.splitlines()
    assert first == "small CNN-F: layers for an image of 1 x 28 x 28"
    assert head.split() == ["layer", "type", "shape", "region"]
    assert "pool2 MaxPool2d 64 x 12 x 12 V4" in [" ".join(line.split()) for line in lines]
    assert lines[-1].startswith("Feedback runs 2 iterations down to ")


def test_the_command_for_another_network_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 2, 5), nn.Sigmoid())\n")
    assert main([f"{file}:build", "--image-size", "16"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].endswith("layers for an image of 3 x 16 x 16")
    assert lines[3:] == ["0 Conv2d 2 x 12 x 12", "1 Sigmoid 2 x 12 x 12"]


def test_an_unknown_network_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vgg61"]) == 1
    assert "model 'vgg61' is not known" in capsys.readouterr().err
