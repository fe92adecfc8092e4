"""Networks of the user's own code, trained from the command line and taken by the rest of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer.tiny_imagenet import SIZE, flags, imagenet

from cnnf_brain import load_network
from cnnf_brain.model.weights import read_card

CODE = """
from torch import nn
from cnnf_brain import CNNF, Preprocessing


def layers(n=3):
    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, n))


def control():
    return layers()


def feedback():
    model = CNNF(layers(), iterations=2, step=0.25, match_norm=True, match_layers=True)
    model.preprocessing = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    return model


def large():
    model = feedback()
    model.preprocessing = Preprocessing(48)
    return model


def four():
    return CNNF(layers(4), iterations=1)


def plain():
    return nn.Identity()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "lab.py"
    path.write_text(CODE)
    return path


def words(images: Path, output: Path, spec: str, *more: Any, model: str = "cnnf", steps: int = 2) -> list[str]:
    """The command, without flags that own code sets itself."""
    argv = flags(images, output, "--arch", spec, *more, model="cnn", steps=steps)
    argv[argv.index("cnn")] = model
    return argv


def test_an_own_cnnf_is_trained_as_its_function_makes_it_and_taken_with_its_card(
    images: Path, code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, output = f"{code}:feedback", tmp_path / "out"
    assert imagenet.main(words(images, output, spec, "--iterations", 1)) == 0
    assert (
        "lab.py:feedback CNN-F-1, ImageNet (3 classes): lab.py:feedback as its function makes it" in capsys.readouterr().out
    )
    card = read_card(output / "model.safetensors")
    assert (card.iterations, card.feedback["step"], card.mean) == (1, 0.25, (0.5, 0.4, 0.3))
    network = load_network(spec, str(output / "model.safetensors"), device="cpu")
    assert (network.iterations, network.preprocessing.mean, network.feedback) == (1, (0.5, 0.4, 0.3), "feedback trained")
    for name, value in load_file(output / "model.safetensors").items():
        assert torch.equal(network.module.state_dict()[name], value)
    evaluated = ["--data", str(images), "--evaluate", "--weights", str(output / "model.safetensors"), "--device", "cpu"]
    assert imagenet.main([*evaluated, "--output", str(tmp_path / "evaluated"), "--workers", "0"]) == 0
    found = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert found["top1"] == list(card.top1)


def test_changed_code_is_another_configuration_and_a_moved_file_is_not(
    images: Path, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert imagenet.main(words(images, output, f"{code}:control", model="cnn")) == 0
    monkeypatch.chdir(tmp_path)
    assert imagenet.main(words(images, output, "lab.py:control", model="cnn")) == 0
    assert "already finished" in capsys.readouterr().out
    code.write_text(CODE.replace("nn.ReLU()", "nn.ReLU(), nn.Dropout(0.1)"))
    assert imagenet.main(words(images, output, "lab.py:control", model="cnn")) == 1
    assert "is of another configuration (code: " in capsys.readouterr().err


def test_the_seed_draws_the_weights(images: Path, code: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        argv = words(images, tmp_path / name, f"{code}:control", "--seed", seed, "--lr", 1e-12, model="cnn", steps=1)
        assert imagenet.main(argv) == 0
    a, b, c = (load_file(tmp_path / name / "model.safetensors")["0.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize(
    ("function", "more", "message"),
    [
        ("control", (), "lab.py:control: has no feedback"),
        ("plain", ("--model", "cnn"), "lab.py:plain makes a Identity, expected a cnnf_brain.CNNF or an nn.Sequential"),
        ("large", (), f"and is trained at image_size {SIZE}, resize None, in colour; give the same in both"),
        ("four", (), "lab.py:four has 4 outputs, expected 3, one for each class"),
        ("nothing", (), "function 'nothing' is not known"),
        ("feedback", ("--weights", "IMAGENET1K_V1"), "lab.py:feedback; give a file, or none"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    images: Path, code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], function: str, more: Any, message: str
) -> None:
    argv = words(
        images, tmp_path / "out", f"{code}:{function}", *(more if "--model" in more else ("--iterations", 1, *more))
    )
    assert imagenet.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_that_the_function_sets_are_usage_errors(
    images: Path, code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        imagenet.arguments(words(images, tmp_path, f"{code}:feedback", "--step-size", 0.1))
    assert "--step-size is what the function of --arch sets itself" in capsys.readouterr().err
    assert imagenet.main(flags(images, tmp_path / "out", "--arch", "vgg61", model="cnn")) == 1
    assert "did you mean 'vgg19' or 'vgg16'" in capsys.readouterr().err
