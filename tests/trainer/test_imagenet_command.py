"""training/imagenet.py from the command line to the files it leaves, in one process."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer.tiny_imagenet import SIZE, WNIDS, flags, imagenet, tiny, without_dropout, write_images

from cnnf_brain import CNNF
from cnnf_brain.datasets.image_batches import DiskBatches, ShownImages, normalise
from cnnf_brain.datasets.image_index import index_images
from cnnf_brain.io import sha256
from cnnf_brain.model.weights import read_card
from cnnf_brain.networks import load_network
from cnnf_brain.trainer import checkpoint, loop
from cnnf_brain.trainer import imagenet as library
from cnnf_brain.trainer.config import LossWeights, Recipe
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.loop import Run, losses

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("tiny_networks")


def log_lines(output: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    clock = ("seconds", "images_per_second", "data_wait", "memory_mib")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def assert_same_weights(a: Path, b: Path, **tolerance: float) -> None:
    theirs = load_file(b / "model.safetensors")
    for name, value in load_file(a / "model.safetensors").items():
        torch.testing.assert_close(value, theirs[name], **({"rtol": 0, "atol": 0} | tolerance), msg=name)  # type: ignore[arg-type]


class StopAt:
    """Stands for Stop: requests a stop at the first step of which ``steps`` are already done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    @property
    def requested(self) -> Any:
        self.left -= 1
        return None if self.left >= 0 else signal.SIGTERM


@pytest.mark.usefixtures("fast_bfloat16")
def test_a_run_leaves_weights_that_the_package_takes_with_card_and_log(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    every = ("--log-every", 2, "--validate-every", 2)
    argv = flags(images, output, *every, "--seed", 3, "--amp", "bfloat16", "--channels-last", "--checkpoint-iterations")
    assert imagenet.main(argv) == 0
    printed = capsys.readouterr()
    assert "all weights new" in printed.out
    assert "7 images a step = ranks x portions x images: 1 x 1 x 7;" in printed.out
    card = json.loads((output / "card.json").read_text())
    assert card.pop("weights_sha256") == sha256(output / "model.safetensors")
    assert read_card(output / "model.safetensors").content == card
    train, validation = index_images(images)
    assert card["configuration"]["data"] == {"train": train.digest(), "validation": validation.digest()}
    assert (card["step"], card["n_validation"], card["configuration"]["seed"]) == (4, 11, 3)
    assert card["feedback"]["step"] == 0.1

    network = load_network("vgg16", str(output / "model.safetensors"), iterations=1, image_size=SIZE)
    assert network.module.step == 0.1
    shown = ShownImages(validation, SIZE)[range(11), [False] * 11]
    for t in range(2):
        logits = network.module(normalise(shown.images), iterations=t)
        right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, shown.labels, strict=True))
        assert card["validation_accuracy"][t] == pytest.approx(right / 11)
        assert card["validation_top5_accuracy"][t] == 1.0  # of three classes
        assert f"| {t} | {100 * right / 11:.2f} % | 100.00 % |" in (output / "card.md").read_text()

    steps = [line for line in log_lines(output) if "losses" in line]
    assert [line["step"] for line in steps] == [2, 4]
    assert steps[1]["epoch"] == pytest.approx(28 / 24, abs=1e-4)
    assert {name: len(values) for name, values in steps[0]["losses"].items()} == {"cross_entropy": 2, "reconstruction": 2}
    judged = {line["step"]: line["validation"] for line in log_lines(output) if "validation" in line}
    assert [found["images"] for found in judged.values()] == [11, 11, 11]
    assert list(judged) == [0, 2, 4]
    assert judged[4]["top1"] == card["validation_accuracy"]
    best = read_card(output / "best.safetensors").content
    assert best["validation_accuracy"][-1] == max(judged[step]["top1"][-1] for step in (2, 4))


def test_stopped_and_resumed_equals_uninterrupted_in_every_bit(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the end of an epoch, with dropout, momentum and a learning rate that decays."""
    more = ("--log-every", 1, "--validate-every", 4, "--decay-every", 3, "--decay-factor", 0.5)
    assert imagenet.main(flags(images, tmp_path / "straight", *more, steps=9)) == 0
    for done in (2, 3, 1):  # after 2, 5 and 6 steps
        with monkeypatch.context() as patch:
            patch.setattr(imagenet, "Stop", lambda done=done: StopAt(done))
            assert imagenet.main(flags(images, tmp_path / "stopped", *more, steps=9)) == 75
    assert "stopped by SIGTERM after step 6, saved" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "card.json").exists()
    assert imagenet.main(flags(images, tmp_path / "stopped", *more, "--resume", steps=9)) == 0
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")
    assert log_lines(tmp_path / "stopped") == log_lines(tmp_path / "straight")
    states = [checkpoint.newest(tmp_path / name / "checkpoints")[1]["optimizer"] for name in ("stopped", "straight")]
    for number, state in states[0]["state"].items():
        assert torch.equal(state["momentum_buffer"], states[1]["state"][number]["momentum_buffer"])
    rates = [line["learning_rate"] for line in log_lines(tmp_path / "straight") if "losses" in line]
    assert rates == [0.01 * 0.5 ** (step // 3) for step in range(9)]


def test_tensorboard_shows_the_numbers_of_the_log_once_each_after_a_resume(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    more = ("--log-every", 1, "--validate-every", 2)
    monkeypatch.setattr(imagenet, "Stop", lambda: StopAt(3))
    assert imagenet.main(flags(images, tmp_path, *more)) == 75
    monkeypatch.setattr(imagenet, "Stop", lambda: StopAt(99))
    assert imagenet.main(flags(images, tmp_path, *more)) == 0
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for tag, pick in {
        "losses/cross_entropy/1": lambda line: line["losses"]["cross_entropy"][1],
        "gradient_norm": lambda line: line["gradient_norm"],
        "learning_rate": lambda line: line["learning_rate"],
        "images_per_second": lambda line: line["images_per_second"],
    }.items():
        wanted = [(line["step"], pick(line)) for line in lines if "losses" in line]  # type: ignore[no-untyped-call]
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        assert [step for step, _ in shown] == [step for step, _ in wanted] == [1, 2, 3, 4]
        assert [value for _, value in shown] == pytest.approx([value for _, value in wanted], rel=1e-6)
    judged = {line["step"]: line["validation"]["top1"][0] for line in lines if "validation" in line}
    assert {event.step: event.value for event in board.Scalars("validation/top1/0")} == pytest.approx(judged, rel=1e-6)


def test_more_steps_continue_and_fewer_or_other_settings_are_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imagenet.main(flags(images, tmp_path / "long", steps=4)) == 0
    output = tmp_path / "out"
    assert imagenet.main(flags(images, output, steps=2)) == 0
    assert imagenet.main(flags(images, output, steps=4)) == 0
    assert_same_weights(output, tmp_path / "long")
    before = (output / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert imagenet.main(flags(images, output, steps=4)) == 0
    assert "already finished" in capsys.readouterr().out
    assert imagenet.main(flags(images, output, steps=3)) == 1
    assert "is of 4 steps, more than the 3 asked for" in capsys.readouterr().err
    assert imagenet.main(flags(images, output, "--momentum", "0.5")) == 1
    assert "momentum: 0.9 there, 0.5 now" in capsys.readouterr().err
    (output / "card.json").unlink()
    assert imagenet.main(flags(images, output, "--limit", 20)) == 1
    assert "data.train: " in capsys.readouterr().err
    assert (output / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("portions", [1, 3, 9])
def test_the_step_follows_the_gradient_of_the_mean_however_it_is_divided(
    images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, portions: int
) -> None:
    """Nine portions of seven images: two are empty."""
    torch.manual_seed(0)
    model = CNNF(without_dropout("vgg16", 3), iterations=2, step=0.1)
    recipe = Recipe(batch_size=7, image_size=SIZE, learning_rate=1.0, momentum=0.0, accumulate=portions)
    indices = index_images(images)
    batch = next(iter(DiskBatches(index=indices[0], size=SIZE, batch_size=7).batches()))
    total, _ = losses(model, normalise(batch.images), batch.labels, LossWeights())
    gradients = torch.autograd.grad(total, list(model.parameters()))
    expected = [p.detach() - g for p, g in zip(model.parameters(), gradients, strict=True)]
    norm = library.trainer_of(recipe, model, indices, Run(tmp_path, {}), {}, Ranks()).step(batch, 7)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert norm.item() == pytest.approx(sum(g.square().sum().item() for g in gradients) ** 0.5, rel=1e-4)


def test_the_gradient_is_clipped_and_its_norm_before_that_is_logged(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CNNF(without_dropout("vgg16", 3), iterations=0)
    before = [p.detach().clone() for p in model.parameters()]
    recipe = Recipe(batch_size=7, image_size=SIZE, learning_rate=1.0, momentum=0.0, clip=1e-3)
    indices = index_images(images)
    batch = next(iter(DiskBatches(index=indices[0], size=SIZE, batch_size=7).batches()))
    norm = library.trainer_of(recipe, model, indices, Run(tmp_path, {}), {}, Ranks()).step(batch, 7)
    moved = sum((p.detach() - b).square().sum().item() for p, b in zip(model.parameters(), before, strict=True)) ** 0.5
    assert norm.item() > 1e-2
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_damaged_images_are_skipped_named_and_counted_and_too_many_stop_the_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(images, tmp_path / "images"))
    victim = damaged / "train" / WNIDS[0] / "train_000.png"
    victim.write_bytes(victim.read_bytes()[:100])
    (damaged / "val" / WNIDS[1] / "val_001.png").write_bytes(b"not a picture")
    allowed = ("--max-bad", 0.1, "--log-every", 1)
    assert imagenet.main(flags(damaged, tmp_path / "a", *allowed, steps=5)) == 0
    assert str(victim) in capsys.readouterr().err
    lines = log_lines(tmp_path / "a")
    assert [line["bad_image"] for line in lines if "bad_image" in line] == [
        str(damaged / "val/n02/val_001.png"),  # validated before the first step
        str(victim),
    ]
    assert [line["bad_images"] for line in lines if "losses" in line][-1] == 1
    assert json.loads((tmp_path / "a" / "card.json").read_text())["n_validation"] == 10
    state = checkpoint.newest(tmp_path / "a" / "checkpoints")[1]
    assert list(state["position"]["bad"]) == [str(victim)]
    assert imagenet.main(flags(damaged, tmp_path / "b", steps=5)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: 1 of 11 validation images cannot be decoded, more than max_bad 0.001 allows")
    (damaged / "val" / WNIDS[1] / "val_001.png").unlink()
    assert imagenet.main(flags(damaged, tmp_path / "c", steps=5)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: 1 of 24 training images cannot be decoded, more than max_bad 0.001 allows")
    assert str(victim) in message


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, real = [], losses

    def fails_at_the_fourth(*inputs: Any, **options: Any) -> Any:
        calls.append(1)
        total, terms = real(*inputs, **options)
        return (
            (total * float("nan"), {"cross_entropy": terms["cross_entropy"] * float("nan")})
            if len(calls) > 3
            else (total, terms)
        )

    monkeypatch.setattr(loop, "losses", fails_at_the_fourth)
    assert imagenet.main(flags(images, tmp_path, "--save-every", 2, steps=9)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "not finite" in message
    assert f"last good checkpoint: {tmp_path}/checkpoints/checkpoint-000000002.safetensors" in message
    assert [path.name for path in checkpoint.paths(tmp_path / "checkpoints")] == ["checkpoint-000000002.safetensors"]


def test_a_full_disk_is_an_error_and_leaves_the_older_checkpoints(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = checkpoint.write_whole  # type: ignore[attr-defined]

    def full(path: Any, write: Any) -> None:
        if "000000004" in path.name:
            raise OSError(28, f"cannot write {path}: No space left on device")
        real(path, write)

    monkeypatch.setattr(checkpoint, "write_whole", full)
    assert imagenet.main(flags(images, tmp_path, "--save-every", 2, steps=9)) == 1
    assert "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path / "checkpoints")[1]["position"]["step"] == 2


def test_the_newest_checkpoint_damaged_the_one_before_is_used(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = flags(images, tmp_path / "out", "--save-every", 1, "--keep", 2, steps=9)
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "Stop", lambda: StopAt(6))
        assert imagenet.main(argv) == 75
    newest, before = checkpoint.paths(tmp_path / "out" / "checkpoints")
    assert before.name == "checkpoint-000000005.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="trying the one before"):
        assert imagenet.main(argv) == 0
    assert imagenet.main(flags(images, tmp_path / "straight", steps=9)) == 0
    assert_same_weights(tmp_path / "out", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "cnnf"])
def test_thirty_two_images_are_learnt_by_heart(tmp_path: Path, model: str) -> None:
    data = write_images(tmp_path / "images", n_train=32, n_val=3)
    shutil.rmtree(data / "val")
    shutil.copytree(data / "train", data / "val")
    argv = flags(data, tmp_path / "out", "--validate-every", 1000, model=model, steps=150)
    argv[argv.index("--batch-size") + 1] = "16"
    assert imagenet.main(argv) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["validation_accuracy"] == [1.0] * (2 if model == "cnnf" else 1)


def test_the_start_keeps_what_fits_and_says_what_is_new(tmp_path: Path) -> None:
    state = {name: torch.full_like(value, 0.5) for name, value in tiny("vgg16", 5).state_dict().items()}
    convolutions = {name: value for name, value in state.items() if name.startswith("features.")}
    for name, content in (("five", state), ("convolutions", convolutions)):
        save_file(content, tmp_path / f"{name}.safetensors")

    def kept(name: str, num_classes: int) -> tuple[set[str], str]:
        file = str(tmp_path / f"{name}.safetensors")
        model, words = library.starting_network(Recipe(weights=file, num_classes=num_classes, feedback={"iterations": 0}))
        return {key for key, value in model.state_dict().items() if (value == 0.5).all()}, words

    assert kept("five", 5)[0] == set(state)
    names, words = kept("five", 3)
    assert names == set(state) - {"classifier.3.weight", "classifier.3.bias"}
    assert "a new last layer (5 classes there)" in words
    names, words = kept("convolutions", 3)
    assert names == set(convolutions)
    assert "a new classifier on top" in words
    save_file({**state, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"classifier\.1\.weight is \(2, 2\), expected \(16, 24\)"):
        kept("wrong", 5)


def test_batch_normalisation_keeps_its_statistics_and_learns_its_scale(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imagenet.main(flags(images, tmp_path, "--arch", "vgg16_bn")) == 0
    assert "batch normalisation keeps its statistics" in capsys.readouterr().out
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["features.1.running_mean"], torch.zeros(6))
    assert torch.equal(state["features.1.running_var"], torch.ones(6))
    assert not torch.equal(state["features.1.weight"], torch.ones(6))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-classes", "2"], "has 3 classes"),
        (["--checkpoint-iterations", "--norm", "1"], "checkpoint_iterations gives up the states"),
        (["--latent", "1"], "set match_layers to False, or the weight latent to 0"),
        (["--weights", "there/is/no.safetensors"], "no such file"),
        (["--image-size", "8"], "32 is the least"),
        (["--resize", "20"], "resize 20: expected at least image_size, 32 pixels"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--target", "features.9"], "layer 'features.9' is not known"),
        (["--device", "cuda:77"], "CUDA devices"),
        (["--resume"], "has no checkpoint to continue"),
    ],
)
def test_errors_before_training_are_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert imagenet.main([*flags(images, tmp_path / "out"), *more]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_the_defaults_are_the_papers_and_a_cnn_takes_no_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = imagenet.arguments(["--data", str(tmp_path), "--model", "cnnf"])
    recipe = imagenet.recipe(args)
    assert (recipe.arch, recipe.weights, recipe.batch_size, recipe.steps) == ("vgg16", "IMAGENET1K_V1", 128, 200_000)
    assert (recipe.learning_rate, recipe.momentum, recipe.decay_every, recipe.decay_factor) == (0.005, 0.9, 100_000, 0.9)
    assert recipe.feedback["match_layers"]  # VGG has no layers that normalise
    rates = [Recipe().learning_rate_at(step) for step in (0, 99_999, 100_000, 199_999)]
    assert rates == [0.005, 0.005, pytest.approx(0.0045), pytest.approx(0.0045)]
    with pytest.raises(SystemExit) as caught:
        imagenet.arguments(["--data", str(tmp_path), "--model", "cnn", "--iterations", "2"])
    assert caught.value.code == 2
    assert "--iterations is for --model cnnf" in capsys.readouterr().err


def test_the_first_validation_is_not_repeated_and_is_no_best(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first step, which saves; and killed before anything was saved, which leaves a line in the log."""
    monkeypatch.setattr(imagenet, "Stop", lambda: StopAt(0))
    assert imagenet.main(flags(images, tmp_path / "out")) == 75
    assert [line["step"] for line in log_lines(tmp_path / "out")] == [0]
    assert not (tmp_path / "out" / "best.safetensors").exists()
    monkeypatch.setattr(imagenet, "Stop", lambda: StopAt(99))
    calls, real = [], library.validate
    monkeypatch.setattr(library, "validate", lambda *args: calls.append(args) or real(*args))  # type: ignore[func-returns-value]
    assert imagenet.main(flags(images, tmp_path / "out")) == 0
    assert len(calls) == 1  # at the end
    assert [line["step"] for line in log_lines(tmp_path / "out") if "validation" in line] == [0, 4]
    shutil.copytree(tmp_path / "out", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints")
    (tmp_path / "killed" / "card.json").unlink()
    assert imagenet.main(flags(images, tmp_path / "killed")) == 0
    assert log_lines(tmp_path / "killed") == log_lines(tmp_path / "out")
    assert_same_weights(tmp_path / "killed", tmp_path / "out")


def test_resized_and_fewer_validation_images_are_another_configuration(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert imagenet.main(flags(images, output, "--limit-validation", 7, steps=1)) == 0
    card = json.loads((output / "card.json").read_text())
    assert (card["n_validation"], card["resize"]) == (7, None)
    assert "resize" not in card["configuration"]  # as before the flag, so that older runs go on
    assert imagenet.main(flags(images, output, "--limit-validation", 7, "--resize", 36, steps=1)) == 1
    assert "resize: absent there, 36 now" in capsys.readouterr().err
    assert imagenet.main(flags(images, output, steps=1)) == 1
    assert "data.validation: " in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--data", "none"], ["--num-classes", "2"], ["--weights", "none.pth"], ["--resume"]])
def test_an_error_before_training_leaves_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "runs" / "out"
    assert imagenet.main([*flags(images, output, model="cnn"), *more]) == 1
    assert list(tmp_path.iterdir()) == []
    output.mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    assert imagenet.main([*flags(images, output, model="cnn"), *more]) == 1
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
