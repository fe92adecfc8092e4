"""training/imagenet.py --evaluate and the functions behind it: accuracy of given weights, without training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from trainer.tiny_imagenet import SIZE, WNIDS, flags, imagenet, tiny

from cnnf_brain import CNNF
from cnnf_brain.compare import accuracy, choice
from cnnf_brain.datasets.image_batches import ShownImages, TooManyBadImages, normalise
from cnnf_brain.datasets.image_index import index_validation
from cnnf_brain.images import Preprocessing
from cnnf_brain.io import sha256
from cnnf_brain.model import weights, zoo
from cnnf_brain.model.weights import Card, read_card
from cnnf_brain.networks import Network, plan
from cnnf_brain.trainer import evaluation
from cnnf_brain.trainer.evaluation import check_classes, evaluate_network

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def validation(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation part alone."""
    root = tmp_path_factory.mktemp("validation")
    shutil.copytree(images / "val", root / "val")
    return root


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CNN-F with settings of its own, resized images and some of the validation images."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "sequential", tiny)
        more = ("--resize", 36, "--limit-validation", 7, "--target", "features.0", "--no-match-layers")
        assert imagenet.main(flags(images, output, *more, steps=6)) == 0
    return output


def words(*given: Any) -> list[str]:
    return [str(word) for word in (*given, "--evaluate", "--workers", 0, "--device", "cpu")]


def test_weights_with_a_card_are_evaluated_as_they_were_trained(
    validation: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = trained / "model.safetensors", tmp_path / "out"
    argv = words("--data", validation, "--weights", file, "--limit-validation", 7, "--output", output)
    assert imagenet.main(argv) == 0
    card, found = read_card(file), json.loads((output / "evaluation.json").read_text())
    assert card.resize == 36
    assert card.content["n_validation"] == 7
    assert tuple(found["top1"]) == card.top1
    assert found["top5"] == [1.0, 1.0]
    assert (found["images"], found["weights"], found["sha256"]) == (7, str(file), sha256(file))
    settings = found["settings"]
    assert (settings["arch"], settings["image_size"], settings["resize"]) == ("vgg16", SIZE, 36)
    assert settings["feedback"] == card.content["feedback"]
    assert found["command"].endswith("--device cpu")
    assert found["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert not (output / "checkpoints").exists()
    printed = capsys.readouterr().out
    for t, share in enumerate(card.top1):
        assert f"{t:9}{100 * share:8.2f}{100:8.2f} %" in printed
    assert imagenet.main(argv) == 0  # the same again
    assert imagenet.main([*argv, "--iterations", "3"]) == 1
    assert "evaluation.json is another evaluation (settings.feedback.iterations: 1 there, 3 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "feedback", "shown"),
    [
        (["--iterations", "3"], {"iterations": 3, "target": "features.0", "step": 0.1}, (SIZE, 36)),
        (["--step-size", "0.5", "--ada-relu", "printed"], {"iterations": 1, "step": 0.5, "ada_relu": "printed"}, (SIZE, 36)),
        (["--model", "cnn"], {"iterations": 0}, (SIZE, 36)),
        (["--image-size", "33", "--resize", "40"], {"iterations": 1}, (33, 40)),
    ],
)
def test_flags_override_the_card(
    validation: Path, trained: Path, tmp_path: Path, more: list[str], feedback: Any, shown: Any
) -> None:
    argv = words("--data", validation, "--weights", trained / "model.safetensors", "--output", tmp_path, *more)
    assert imagenet.main(argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert feedback.items() <= found["settings"]["feedback"].items()
    assert (found["settings"]["image_size"], found["settings"]["resize"]) == shown
    assert len(found["top1"]) == len(found["top5"]) == feedback["iterations"] + 1


def test_published_weights_are_a_cnn_unless_feedback_is_asked_for(
    validation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "published.pth"
    torch.save(tiny("vgg16", 3).state_dict(), file)
    monkeypatch.setattr(weights, "published", lambda arch, name: torch.load(file, weights_only=True))
    monkeypatch.setattr(evaluation, "published_file", lambda arch, name: file)
    monkeypatch.setattr(evaluation, "published_entry", lambda arch, name: SimpleNamespace(meta={"categories": WNIDS}))
    argv = words("--data", validation, "--image-size", SIZE)
    for number, (more, n) in enumerate([([], 0), (["--model", "cnnf"], 2), (["--iterations", "1"], 1)]):
        output = tmp_path / str(number)
        assert imagenet.main([*argv, *more, "--output", str(output)]) == 0
        found = json.loads((output / "evaluation.json").read_text())
        assert (found["weights"], found["sha256"]) == ("IMAGENET1K_V1", sha256(file))
        assert found["settings"]["feedback"]["iterations"] == n
        assert len(found["top1"]) == n + 1
        if n:
            assert found["settings"]["feedback"]["match_layers"]  # the trainer's default, as the help says


def network(n_classes: int = 3, module: nn.Module | None = None, **shown: int) -> Network:
    torch.manual_seed(1)
    module = CNNF(tiny("vgg16", n_classes), iterations=2, step=0.5) if module is None else module
    return Network(module.eval(), Preprocessing(**{"size": SIZE} | shown), name="tiny", weights="drawn")  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", [None, 40])
def test_the_accuracy_of_a_network_is_the_share_of_right_answers(validation: Path, resize: int | None) -> None:
    index, net = index_validation(validation), network(resize=resize)  # type: ignore[arg-type]
    found = evaluate_network(net, index, batch_size=4)
    shown = ShownImages(index, SIZE, resize)[range(11), [False] * 11]
    assert found.images == 11
    assert found.top5 == (1.0,) * 3
    for t in range(3):
        answers = [int(net.module(normalise(image[None]), iterations=t).argmax()) for image in shown.images]
        right = sum(answer == label for answer, label in zip(answers, shown.labels.tolist(), strict=True))
        assert found.top1[t] == pytest.approx(right / 11)


def test_a_network_without_feedback_has_its_one_pass(validation: Path) -> None:
    plain = tiny("vgg16", 3).eval()
    index = index_validation(validation)
    found = evaluate_network(network(module=plain), index, batch_size=11)
    shown = ShownImages(index, SIZE)[range(11), [False] * 11]
    assert found.top1 == (pytest.approx((plain(normalise(shown.images)).argmax(1) == shown.labels).double().mean().item()),)  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: network(5), "has 5 outputs and the images in .* have 3 classes"),
        (lambda: replace(network(), headless=True), "have no classifier"),
        (lambda: replace(network(), preprocessing=Preprocessing(28, (0.5,), (0.5,))), "takes grey images"),
    ],
)
def test_a_network_that_does_not_fit_the_images_is_refused(validation: Path, net: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_network(net(), index_validation(validation))


def test_damaged_images_are_not_counted_and_too_many_are_an_error(validation: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(validation, tmp_path / "images"))
    (root / "val" / WNIDS[1] / "val_001.png").write_bytes(b"not a picture")
    index = index_validation(root)
    with pytest.raises(TooManyBadImages, match="1 of 11 validation images cannot be decoded"):
        evaluate_network(network(), index)
    found = evaluate_network(network(), index, max_bad=0.1)
    assert (found.images, list(found.bad)) == (10, [str(root / "val/n02/val_001.png")])
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(TooManyBadImages, match="11 of 11"):
        evaluate_network(network(), index_validation(root), max_bad=1.0)


def test_other_classes_of_the_same_number_are_refused(
    validation: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(validation, tmp_path / "images"))
    (root / "val" / WNIDS[2]).rename(root / "val" / "n09")
    output = tmp_path / "deep" / "out"
    assert imagenet.main(words("--data", root, "--weights", trained / "model.safetensors", "--output", output)) == 1
    assert "was trained on other classes" in capsys.readouterr().err
    assert not output.parent.exists()


def test_published_weights_for_other_classes_are_not_downloaded(
    validation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "published", lambda *_: pytest.fail("downloaded"))
    output = tmp_path / "out"
    for arch in ("alexnet", "vgg16"):
        assert (
            imagenet.main(words("--data", validation, "--weights", "IMAGENET1K_V1", "--arch", arch, "--output", output)) == 1
        )
        assert (
            f"{arch} [IMAGENET1K_V1] has 1000 outputs and the images in {validation} have 3 classes"
            in capsys.readouterr().err
        )
    assert not output.exists()
    with pytest.raises(ValueError, match=r"resnet18 \[IMAGENET1K_V1\] has 1000 outputs"):
        check_classes(plan("torchvision:resnet18"), index_validation(validation))


def test_weights_for_other_classes_are_refused_before_any_image_is_read(
    validation: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a card before they are loaded; without one before the first batch."""
    monkeypatch.setattr(evaluation, "measure", lambda *_, **__: pytest.fail("read images"))
    file = tmp_path / "bare.safetensors"
    save_file(tiny("vgg16", 5).state_dict(), file)
    assert (
        imagenet.main(words("--data", validation, "--image-size", SIZE, "--weights", file, "--output", tmp_path / "out"))
        == 1
    )
    assert "has 5 outputs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.copytree(validation / "val" / WNIDS[0], tmp_path / "val" / "n01")
    monkeypatch.setattr(weights, "read_weights", lambda *_: pytest.fail("loaded"))
    assert imagenet.main(words("--data", tmp_path, "--weights", trained / "model.safetensors")) == 1
    assert "was trained on other classes" in capsys.readouterr().err


def test_a_comparison_can_check_its_networks_early(validation: Path, trained: Path) -> None:
    index = index_validation(validation)
    fits = plan("vgg16", str(trained / "model.safetensors"))
    accuracy.check([fits, network(), replace(network(5), headless=True)], index)
    accuracy.check([plan("vgg16")], None)
    older = {name: value for name, value in fits.card.content.items() if name != "classes_sha256"}
    older["configuration"] = {**older["configuration"], "num_classes": 7}
    for wrong, message in (
        (plan("vgg16"), r"vgg16 \[IMAGENET1K_V1\] has 1000 outputs"),
        (replace(fits, card=Card.of(older)), r"vgg16 \[.*model.safetensors\] has 7 outputs"),
        (plan("small"), "small .* takes grey images"),
        (network(5), r"tiny \[drawn\] has 5 outputs"),
        (network(module=nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4))), r"tiny \[drawn\] has 4 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            accuracy.check([fits, wrong], index)


def test_an_evaluation_without_images_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    argv = words("--data", tmp_path / "none", "--weights", trained / "model.safetensors", "--output", output)
    assert imagenet.main(argv) == 1
    assert list(tmp_path.iterdir()) == []
    output.mkdir(parents=True)
    assert imagenet.main(argv) == 1
    assert output.is_dir(), "it was there before"
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "no/such.safetensors"], "no such file"),
        (["--target", "input"], "target: settings of feedback, and these weights are evaluated without"),
        (["--resize", "20", "--iterations", "1"], "resize is 20, expected at least the image size, 32 pixels"),
    ],
)
def test_errors_of_an_evaluation_are_one_line(
    validation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    save_file(tiny("vgg16", 3).state_dict(), tmp_path / "bare.safetensors")
    argv = words("--data", validation, "--image-size", SIZE, "--weights", tmp_path / "bare.safetensors")
    assert imagenet.main([*argv, *more]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "7"], "--steps is for training; --evaluate does not train"),
        (["--reconstruction", "1"], "--reconstruction is for training"),
        (["--resume"], "--resume is for training"),
        (["--weights", "none"], "--evaluate measures weights"),
        (["--model", "cnn", "--target", "input"], "a CNN has no feedback"),
    ],
)
def test_what_an_evaluation_does_not_use_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        imagenet.main(words("--data", tmp_path, *more))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_card_says_what_training_started_from(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = trained / "model.safetensors"
    assert load_file(file)
    argv = flags(images, tmp_path / "out", steps=1)
    assert read_card(file).started_from == "none"
    assert read_card(file).started_sha256 is None
    argv[argv.index("--weights") + 1] = str(file)
    assert imagenet.main(argv) == 0
    card = read_card(tmp_path / "out" / "model.safetensors")
    assert (card.started_from, card.started_sha256) == (str(file), sha256(file))
    assert card.resize is None
    assert "resize" not in card.content["configuration"]


def test_what_training_started_from_is_found_from_any_folder(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card names the file relative to its own folder, and nothing of where that lies."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    first, second = runs / "first" / "model.safetensors", runs / "second" / "model.safetensors"
    first.parent.mkdir(parents=True)
    shutil.copy(trained / "model.safetensors", first)
    monkeypatch.chdir(runs / "first")
    argv = flags(images, Path("..", "second"), steps=1)
    argv[argv.index("--weights") + 1] = "model.safetensors"
    assert imagenet.main(argv) == 0
    assert json.loads((second.parent / "card.json").read_text())["started_from"]["weights"] == "../first/model.safetensors"
    monkeypatch.chdir(elsewhere)
    assert choice.starting_weights(read_card(second), "trained") == str(first)
    assert (
        choice.starting_weights(read_card("../runs/second/model.safetensors"), "trained")
        == "../runs/first/model.safetensors"
    )
    link = elsewhere / "link.safetensors"
    link.symlink_to(second)
    assert choice.starting_weights(read_card(link), "trained") == str(first)
    runs.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "second" / "model.safetensors"
    assert choice.starting_weights(read_card(moved), "trained") == str(tmp_path / "moved" / "first" / "model.safetensors")
