"""training/mnist.py from the command line to the files it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer.idx_files import NAMES

from cnnf_brain import small_net
from cnnf_brain.datasets import mnist as mnist_files
from cnnf_brain.io import sha256
from cnnf_brain.model.weights import read_card
from cnnf_brain.results import commit
from cnnf_brain.train import small as _mnist
from cnnf_brain.trainer import checkpoint, small

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "mnist.py"
mnist: Any = _mnist


def flags(folder: Path, output: Path, *more: str, model: str = "cnn", epochs: int = 2) -> list[str]:
    words = ["--dataset", "mnist", "--data", folder, "--model", model, "--epochs", epochs, "--batch-size", 50]
    words += ["--output", output, "--device", "cpu", *more]
    return [str(word) for word in words]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    assert weights(a).keys() == weights(b).keys()
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name


def test_a_cnnf_leaves_weights_card_configuration_and_log(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = make_folder(), tmp_path / "out"
    argv = flags(folder, output, "--iterations", "1", "--half", "--seed", "3", model="cnnf", epochs=1)
    assert mnist.main(argv) == 0
    printed = capsys.readouterr()
    card = json.loads((output / "card.json").read_text())
    assert card.pop("weights_sha256") == sha256(output / "model.safetensors")
    assert read_card(output / "model.safetensors").content == card
    assert card["command"].startswith("cnnf-brain train small --dataset mnist --data")
    assert card["configuration"]["seed"] == 3
    assert card["configuration"]["data_hash"] == mnist_files.find("mnist", folder).check()
    assert torch.__version__.startswith(card["versions"]["torch"])
    assert card["n_test"] == 40
    assert card["n_validation"] == 20
    assert {value.dtype for value in weights(output).values()} == {torch.float16}

    model = small_net(output / "model.safetensors", **card["configuration"]["feedback"])
    assert model.iterations == 1
    test = mnist_files.find("mnist", folder).read("test")
    for t in range(2):
        right = [
            c
            for i in range(0, 40, 8)
            for c in model(mnist_files.scale(test.images[i : i + 8]), iterations=t).argmax(1).tolist()
        ]
        share = sum(a == b for a, b in zip(right, test.labels.tolist(), strict=True)) / 40
        assert card["test_accuracy"][t] == pytest.approx(share, abs=1e-12)
        assert f"iteration {t}: " in printed.out
        assert f"| {t} | " in (output / "card.md").read_text()
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1]
    assert len(lines[0]["validation_accuracy"]) == 2
    assert lines[0]["validation_accuracy"] == card["validation_accuracy_before_storing"]
    assert json.loads((output / "config.json").read_text())["configuration"] == card["configuration"]
    assert "epoch 1/1" in printed.err


def test_the_test_images_play_no_part_before_the_end(
    make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other test images, the same weights and validation accuracy; and they reach a network once, in the last call."""
    real, judged = small.accuracy, []
    monkeypatch.setattr(small, "accuracy", lambda model, images: judged.append(len(images)) or real(model, images))  # type: ignore[func-returns-value]
    for name, test_seed in (("a", 2), ("b", 77)):
        folder = make_folder(f"data-{name}", test_seed=test_seed)
        assert mnist.main(flags(folder, tmp_path / name)) == 0
    assert judged == [20, 20, 40] * 2  # stored in float32, the weights are those that were just validated
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in "ab"]
    assert cards[0]["configuration"]["data_hash"] != cards[1]["configuration"]["data_hash"]
    assert cards[0]["validation_accuracy"] == cards[1]["validation_accuracy"]
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_is_left_alone_and_another_configuration_refused(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = make_folder(), tmp_path / "out"
    assert mnist.main(flags(folder, output, epochs=1)) == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert mnist.main(flags(folder, output, epochs=1)) == 0
    assert "already finished" in capsys.readouterr().out
    assert mnist.main(flags(folder, output, "--lr", "0.01", epochs=1)) == 1
    message = capsys.readouterr().err
    assert "learning_rate: 0.001 there, 0.01 now" in message
    assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_of_another_configuration_is_refused(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = make_folder(), tmp_path / "out"
    assert mnist.main(flags(folder, output, epochs=1)) == 0
    (output / "card.json").unlink()
    assert mnist.main(flags(folder, output, epochs=2)) == 1
    assert "epochs: 1 there, 2 now" in capsys.readouterr().err


def test_resume_insists_on_a_checkpoint(make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mnist.main(flags(make_folder(), tmp_path / "out", "--resume")) == 1
    assert "has no checkpoint to continue; to start there, do not insist on one" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from filelock import FileLock

    folder, output = make_folder(), tmp_path / "out"
    output.mkdir()
    with FileLock(output / ".lock"):
        assert mnist.main(flags(folder, output)) == 1
    assert "another run is writing to" in capsys.readouterr().err


def test_an_error_before_training_leaves_nothing(make_folder: Any, tmp_path: Path) -> None:
    folder, runs = make_folder(), tmp_path / "runs"
    for argv in (
        flags(tmp_path / "none", runs / "out"),
        flags(tmp_path / "none", runs / "out", "--seeds", "0", "1"),
        flags(folder, runs / "out", "--resume"),
    ):
        assert mnist.main(argv) == 1
        assert not runs.exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_damaged_data_is_an_error_before_training(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    folder = make_folder()
    path = folder / NAMES[part][0]
    path.write_bytes(path.read_bytes()[:-1])
    assert mnist.main(flags(folder, tmp_path / "out")) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {path}")
    assert message.count("\n") == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_an_unknown_target_is_an_error_before_training(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mnist.main(flags(make_folder(), tmp_path / "out", "--target", "rleu1", model="cnnf")) == 1
    assert "did you mean 'relu1'" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_an_error(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert mnist.main(flags(make_folder(), tmp_path / "file" / "out")) == 1
    assert "choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "0 is not above 0"),
        (["--lr", "nan"], "nan is not above 0"),
        (["--reconstruction", "-1"], "-1 is not 0 or above"),
        (["--iterations", "2"], "--iterations is for --model cnnf"),
        (["--no-match-norm"], "--match-norm is for --model cnnf"),
        (["--norm", "0.5"], "--norm is for --model cnnf"),
        (["--seed", "-1"], "-1 is not 0 or above"),
        (["--dataset", "cifar"], "invalid choice"),
        (["--epsilon", "0.1"], "--epsilon is for --adversarial"),
        (["--attack", "fgsm"], "--attack is for --adversarial"),
        (["--adversarial", "only", "--epsilon", "-0.1"], "-0.1 is not in [0, 1]"),
        (["--adversarial", "only", "--epsilon", "1.5"], "1.5 is not in [0, 1]"),
        (["--adversarial", "only", "--epsilon", "nan"], "nan is not in [0, 1]"),
        (["--adversarial", "only", "--attack", "fgsm", "--attack-step", "0.1"], "FGSM is one step"),
        (["--adversarial", "both"], "invalid choice"),
        (["--limit", "0"], "0 is not above 0"),
        (["--seed", "1", "--seeds", "2"], "not allowed with"),
    ],
)
def test_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        mnist.main(flags(tmp_path, tmp_path / "out", *more))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, after: int) -> None:
    """Until there is a checkpoint of a step beyond ``after``."""
    deadline = time.monotonic() + 200
    while not any(int(path.stem[-9:]) > after for path in checkpoint.paths(folder)):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "no checkpoint in 200 s"
        time.sleep(0.005)


@pytest.mark.slow
def test_stopped_by_sigterm_then_killed_then_finished_equals_uninterrupted(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = make_folder(), tmp_path / "out"
    argv = flags(folder, output, "--save-every", "1", epochs=5)
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, str(SCRIPT), *argv]

    with started(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for_checkpoint(process, output / "checkpoints", after=0)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=200)
    assert process.returncode == 75
    assert "stopped by SIGTERM after step" in message
    assert not (output / "card.json").exists()
    done = checkpoint.newest(output / "checkpoints")[1]["position"]["step"]

    with started(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for_checkpoint(process, output / "checkpoints", after=done)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (output / "card.json").exists()

    assert mnist.main([*argv, "--resume"]) == 0
    assert not [path for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]
    assert mnist.main(flags(folder, tmp_path / "straight", epochs=5)) == 0
    assert_same_weights(output, tmp_path / "straight")
    logs = [
        [json.loads(line) for line in (where / "log.jsonl").read_text().splitlines()]
        for where in (output, tmp_path / "straight")
    ]
    for line in (line for log in logs for line in log):
        del line["seconds"]
    assert logs[0] == logs[1]


def test_seeds_trains_the_runs_that_are_missing(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, runs = make_folder(), tmp_path / "runs"
    assert mnist.main(flags(folder, runs / "seed1", "--seed", "1", epochs=1)) == 0
    before = (runs / "seed1" / "card.json").read_bytes()
    capsys.readouterr()
    assert mnist.main(flags(folder, runs, "--seeds", "0", "1", "2", "1", epochs=1)) == 0
    printed = capsys.readouterr().out
    assert printed.count("from the start") == 2
    assert printed.count("already finished") == 1
    assert (runs / "seed1" / "card.json").read_bytes() == before
    seeds = [json.loads((runs / f"seed{n}" / "card.json").read_text())["configuration"]["seed"] for n in range(3)]
    assert seeds == [0, 1, 2]
    with pytest.raises(AssertionError):
        assert_same_weights(runs / "seed0", runs / "seed2")


def test_limit_trains_on_fewer_images_and_says_so(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder()
    assert mnist.main(flags(folder, tmp_path / "out", "--limit", "60", epochs=1)) == 0
    assert "60 training and 20 validation images" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "card.json").read_text())["configuration"]["limit"] == 60
    assert mnist.main(flags(folder, tmp_path / "more", "--limit", "221", epochs=1)) == 1
    assert "expected a number from 1 to the 220 training images" in capsys.readouterr().err


@pytest.mark.usefixtures("fast_bfloat16")
def test_mixed_precision_is_another_configuration_and_is_in_the_card(
    make_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_folder(), tmp_path / "out"
    words = ["--iterations", "1", "--adversarial", "augment", "--attack", "pgd7", "--limit", "60", "--amp", "bfloat16"]
    assert mnist.main(flags(folder, out, *words, model="cnnf", epochs=1)) == 0
    assert json.loads((out / "card.json").read_text())["configuration"]["amp"] == "bfloat16"
    assert mnist.main(flags(folder, out, *words[:-2], model="cnnf", epochs=1)) == 1
    assert "amp: bfloat16 there, absent now" in capsys.readouterr().err


def test_adversarial_training_has_its_own_defaults() -> None:
    given = ["--dataset", "mnist", "--model", "cnn"]
    asked = [given, [*given, "--adversarial", "augment"]]
    asked.append([*given, "--adversarial", "only", "--lr", "0.1", "--epochs", "2", "--epsilon", "0"])
    standard, hardened, other = (mnist.settings(mnist.arguments(words), 0) for words in asked)
    assert (standard.epochs, standard.learning_rate, standard.adversary) == (30, 1e-3, None)
    assert (hardened.epochs, hardened.learning_rate) == (90, 1e-4)
    assert (hardened.adversary.attack, hardened.adversary.epsilon) == ("pgd7", 0.3)
    assert (other.epochs, other.learning_rate, other.adversary.epsilon) == (2, 0.1, 0)
    names = {
        mnist.output(mnist.arguments(words), run).name for words, run in zip(asked[:2], (standard, hardened), strict=True)
    }
    assert names == {"mnist-cnn-seed0", "mnist-cnn-augment-pgd7-0.3-seed0"}


def test_the_card_says_how_the_images_were_made(make_folder: Any, tmp_path: Path) -> None:
    words = [
        "--adversarial",
        "augment",
        "--attack",
        "fgsm",
        "--epsilon",
        "0.1",
        "--normalisation",
        "l2",
        "--iterations",
        "1",
    ]
    assert mnist.main(flags(make_folder(), tmp_path / "out", *words, model="cnnf", epochs=1)) == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["configuration"]["adversarial"] == {"mode": "augment", "attack": "fgsm", "epsilon": 0.1, "step_size": None}
    assert card["title"] == "CNN-F-1, MNIST, trained on clean and adversarial images (fgsm, epsilon 0.1)"
    assert card["configuration"]["learning_rate"] == 1e-4
    model, _ = small.load(tmp_path / "out")
    assert model.get_submodule("norm1").kind == "l2"
    assert not model.training


def test_the_manual_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mnist.main(["--help"])
    shown = capsys.readouterr().out
    for word in ("Exit codes", "--match-norm", "75 stopped by a signal", "test images are used once"):
        assert word in " ".join(shown.split())


def test_the_commit_is_that_of_the_checkout_and_none_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if done.returncode == 0:
        assert commit().removesuffix("-dirty") == done.stdout.strip()
    monkeypatch.setenv("PATH", "")
    assert commit() is None
