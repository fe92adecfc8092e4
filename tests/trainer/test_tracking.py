"""Where the numbers of a run go besides its log, and its settings as a file that repeats it."""

from __future__ import annotations

import json
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from test_imagenet_command import StopAt, assert_same_weights, log_lines
from test_mnist_command import flags as mnist_flags
from test_mnist_command import mnist
from trainer.tiny_imagenet import flags, imagenet

from cnnf_brain.trainer.metrics import numbers

pytestmark = pytest.mark.usefixtures("tiny_networks")


class StandIn(types.ModuleType):
    """Takes the calls that wandb takes, and refuses a step below the last one of a run as wandb does."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.finished = 0

    def init(self, **how: Any) -> Any:
        self.begun.append(how)
        lines = self.logged.setdefault(how["id"], [])

        def log(values: dict[str, float], *, step: int) -> None:
            assert values
            assert all(type(value) in (int, float) for value in values.values())
            if not lines or step >= lines[-1][0]:
                lines.append((step, values))

        def finish() -> None:
            self.finished += 1

        return types.SimpleNamespace(log=log, finish=finish)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_the_numbers_of_the_log_under_one_id(
    images: Path, tmp_path: Path, wandb: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--log-every", 1, "--validate-every", 2, "--track", "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "feedback")
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "Stop", lambda: StopAt(3))
        assert imagenet.main(flags(images, tmp_path / "out", *more)) == 75
    assert imagenet.main(flags(images, tmp_path / "out", *more)) == 0
    assert [how["id"] for how in wandb.begun] == [(tmp_path / "out" / "wandb-id").read_text()] * 2
    how = wandb.begun[1]
    assert (how["project"], how["name"], how["resume"]) == ("feedback", "out", "allow")
    assert how["config"] == json.loads((tmp_path / "out" / "config.json").read_text())["configuration"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    wanted = [(line.pop("step"), dict(numbers(line))) for line in lines]
    assert wandb.logged[how["id"]] == wanted
    assert wandb.finished == 2
    assert not (tmp_path / "out" / "tensorboard").exists()


def test_the_small_net_is_tracked_too(make_folder: Any, tmp_path: Path, wandb: StandIn) -> None:
    argv = mnist_flags(make_folder(), tmp_path / "out", "--limit", "60", "--track", "wandb", "tensorboard")
    assert mnist.main(argv) == 0
    (lines,) = wandb.logged.values()
    logged = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [values["validation_accuracy/0"] for _, values in lines] == [line["validation_accuracy"][0] for line in logged]
    assert list((tmp_path / "out" / "tensorboard").iterdir())


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed_is_an_error_before_any_work(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tracker: str,
    module: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert imagenet.main(flags(images, tmp_path / "out", "--track", tracker)) == 1
    printed = capsys.readouterr().err
    assert f"tracker '{tracker}' needs a package that cannot be imported" in printed
    assert "pip install 'cnnf-brain[tracking]'" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("cnnf", ("--decay", "cosine", "--warmup", 1, "--seed", 3, "--norm", 0.5, "--track", "tensorboard", "--limit", 20)),
        ("cnn", ("--label-smoothing", 0.1, "--ema", 0.5, "--clip", 1e-3)),
    ],
)
def test_the_written_settings_repeat_a_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, more: tuple[Any, ...]
) -> None:
    assert imagenet.main(flags(images, tmp_path / "out", *more, model=model)) == 0
    config = tmp_path / "out" / "config.toml"
    repeat = ["--config", str(config), "--output"]
    assert imagenet.main([*repeat, str(tmp_path / "out")]) == 0
    assert "already finished" in capsys.readouterr().out
    assert imagenet.main([*repeat, str(tmp_path / "again")]) == 0
    assert_same_weights(tmp_path / "again", tmp_path / "out")
    assert log_lines(tmp_path / "again") == log_lines(tmp_path / "out")
    assert (tmp_path / "again" / "config.toml").read_bytes() == config.read_bytes()
    assert imagenet.main([*repeat, str(tmp_path / "longer"), "--steps", "6"]) == 0  # flags come first
    assert json.loads((tmp_path / "longer" / "card.json").read_text())["step"] == 6


def test_the_written_settings_repeat_a_run_of_the_small_net(make_folder: Any, tmp_path: Path) -> None:
    more = ("--iterations", "1", "--adversarial", "augment", "--attack", "fgsm", "--normalisation", "l2", "--half")
    argv = mnist_flags(make_folder(), tmp_path / "all", "--seeds", "4", "--limit", "40", *more, model="cnnf", epochs=1)
    assert mnist.main(argv) == 0
    config = tmp_path / "all" / "seed4" / "config.toml"
    assert tomllib.loads(config.read_text())["seed"] == 4
    assert mnist.arguments(["--config", str(config), "--seeds", "1", "2"]).seeds == [1, 2]  # flags come first
    assert mnist.main(["--config", str(config), "--output", str(tmp_path / "again")]) == 0
    assert_same_weights(tmp_path / "again", tmp_path / "all" / "seed4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps = 3", "setting 'stepps' is not known in {path}; did you mean 'steps'"),
        ("debug = true", "setting 'debug' is not known"),
        ("steps = true", "{path}: steps = True, expected one value"),
        ("compile = 1", "{path}: compile = 1, expected true or false"),
        ("steps = [1, 2]", "{path}: steps = [1, 2], expected one value"),
        ("[steps]\nn = 1", "{path}: steps = {{'n': 1}}, expected one value"),
        ("steps = 0", "--steps: 0 is not above 0"),
        ("amp = 'float8'", "--amp: invalid choice: 'float8'"),
        ("steps 3", "{path} cannot be read as TOML"),
    ],
)
def test_a_file_of_settings_that_is_wrong_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        imagenet.arguments(["--data", ".", "--model", "cnn", "--config", str(path)])
    assert caught.value.code == 2
    assert message.format(path=path) in capsys.readouterr().err


def test_a_file_of_settings_that_is_missing_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        imagenet.arguments(["--config", str(tmp_path / "none.toml")])
    assert "none.toml" in capsys.readouterr().err


def test_underscores_false_and_lists_in_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "batch_size = 64\nlr = 1e-3\nchannels-last = false\ntrack = ['wandb', 'tensorboard']\ntarget = 'features.0'\n"
    )
    args = imagenet.arguments(["--data", ".", "--model", "cnnf", "--config", str(path), "--lr", "0.5"])
    recipe = imagenet.recipe(args)
    assert (recipe.batch_size, recipe.learning_rate, recipe.channels_last) == (64, 0.5, False)
    assert (recipe.track, recipe.feedback["target"]) == (("wandb", "tensorboard"), "features.0")
