"""What labs add to the paper's schedule: each option against an account of its own, and exact after a stop."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_imagenet_command import StopAt, assert_same_weights, log_lines
from torch.nn import functional
from torch.optim import lr_scheduler
from trainer.tiny_imagenet import flags, imagenet, tiny

from cnnf_brain import CNNF
from cnnf_brain.trainer import checkpoint, loop
from cnnf_brain.trainer.config import LossWeights, Recipe, Schedule
from cnnf_brain.trainer.descent import Descent

pytestmark = pytest.mark.usefixtures("tiny_networks")


def stopped_and_straight(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[Any, ...]) -> list[Any]:
    """The checkpoints of two runs of six steps: one stopped after two steps and again after four, one never; all else the same."""
    more = ("--log-every", 1, "--validate-every", 3, *more)
    assert imagenet.main(flags(images, tmp_path / "straight", *more, steps=6)) == 0
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(imagenet, "Stop", lambda: StopAt(2))
            assert imagenet.main(flags(images, tmp_path / "stopped", *more, steps=6)) == 75
    assert imagenet.main(flags(images, tmp_path / "stopped", *more, "--resume", steps=6)) == 0
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")
    assert log_lines(tmp_path / "stopped") == log_lines(tmp_path / "straight")
    states = [checkpoint.newest(tmp_path / name / "checkpoints")[1] for name in ("stopped", "straight")]
    flat = [checkpoint.apart({name: state[name] for name in state if name != "position"}) for state in states]
    assert flat[0][0] == flat[1][0]
    assert flat[0][1].keys() == flat[1][1].keys()
    assert all(torch.equal(value, flat[1][1][name]) for name, value in flat[0][1].items())
    return states


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_warm_up_and_cosine_are_those_of_torchs_schedulers(warmup: int) -> None:
    plan = Schedule(steps=13, learning_rate=0.3, warmup=warmup, decay="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 13 - warmup)
    rise = lr_scheduler.LinearLR(optimizer, 1 / max(warmup, 1), total_iters=max(warmup - 1, 1))
    whole = lr_scheduler.SequentialLR(optimizer, [rise, cosine], [warmup]) if warmup else cosine
    for step in range(13):
        assert plan.learning_rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        whole.step()
    assert plan.learning_rate_at(13) == pytest.approx(0, abs=1e-12)


def test_the_warm_up_multiplies_the_papers_steps() -> None:
    plan = Schedule(steps=10, learning_rate=0.8, warmup=4, decay_every=2, decay_factor=0.5)
    rates = [plan.learning_rate_at(step) for step in (0, 1, 2, 3, 4, 8)]
    assert rates == pytest.approx([0.2, 0.4, 0.3, 0.4, 0.2, 0.05])


def test_a_cosine_goes_on_exactly_but_not_to_more_steps(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--decay", "cosine", "--warmup", 2, "--label-smoothing", 0.1)
    stopped_and_straight(images, tmp_path, monkeypatch, more)
    assert "rising over 2 steps, then a cosine to 0 at step 6" in capsys.readouterr().out
    rates = [line["learning_rate"] for line in log_lines(tmp_path / "straight") if "losses" in line]
    assert rates[:3] == [0.005, 0.01, 0.01]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert imagenet.main(flags(images, tmp_path / "straight", *more, steps=7)) == 1
    assert "steps: 6 there, 7 now" in capsys.readouterr().err


def test_the_moving_average_is_validated_kept_and_restored(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[dict[str, torch.Tensor]] = []
    real, judged = Descent.step, []

    def watched(self: Descent, *how: Any) -> torch.Tensor:
        norm = real(self, *how)
        steps.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return norm

    def validated(network: CNNF, *_: Any) -> Any:
        judged.append({name: value.clone() for name, value in network.state_dict().items()})
        return validate(network, *_)

    validate = imagenet.imagenet.validate
    with monkeypatch.context() as patch:
        patch.setattr(Descent, "step", watched)
        patch.setattr(imagenet.imagenet, "validate", validated)
        assert imagenet.main(flags(images, tmp_path / "watched", "--ema", 0.75, steps=6)) == 0
    expected = dict(steps[0])
    for weights in steps[1:]:
        expected = {name: 0.75 * value + 0.25 * weights[name] for name, value in expected.items()}
    kept = load_file(tmp_path / "watched" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, msg=name)
        assert torch.equal(judged[-1][name], kept[name])
    assert any(not torch.equal(kept[name], value) for name, value in steps[-1].items())

    states = stopped_and_straight(images, tmp_path, monkeypatch, ("--ema", 0.75))
    assert all(torch.equal(states[0]["average"][name], value) for name, value in kept.items())
    (tmp_path / "watched" / "model.safetensors").unlink()
    capsys.readouterr()
    assert imagenet.main(flags(images, tmp_path / "watched", "--ema", 0.75, steps=6)) == 0
    assert "restored from" in capsys.readouterr().out
    assert all(
        torch.equal(value, kept[name]) for name, value in load_file(tmp_path / "watched" / "model.safetensors").items()
    )


def test_label_smoothing_is_a_mixture_with_the_mean_over_all_classes() -> None:
    torch.manual_seed(0)
    model = CNNF(tiny("vgg16", 3), iterations=1, match_norm=True).eval()
    x, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 1, 0])
    _, terms = loop.losses(model, x, labels, LossWeights(0.0, smoothing=0.3))
    for t in range(2):
        logp = functional.log_softmax(model(x, iterations=t), 1)
        expected = -(0.7 * logp[range(5), labels] + 0.3 * logp.mean(1)).mean()
        torch.testing.assert_close(terms["cross_entropy"][t], expected)


def test_a_cnn_takes_label_smoothing_and_the_card_holds_it(images: Path, tmp_path: Path) -> None:
    assert imagenet.main(flags(images, tmp_path, "--label-smoothing", 0.2, model="cnn", steps=1)) == 0
    configuration = json.loads((tmp_path / "card.json").read_text())["configuration"]
    assert configuration["losses"] == {"reconstruction": 0.0, "latent": 0.0, "norm": 0.0, "smoothing": 0.2}


def test_configurations_from_before_these_options_stay_the_same() -> None:
    new = {"warmup", "decay", "ema", "steps"}
    assert not new & Recipe().outcome().keys()
    assert new <= Recipe(warmup=1, decay="cosine", ema=0.9).outcome().keys()
    assert "smoothing" not in LossWeights().configuration()


def test_float16_leaves_out_steps_that_overflow_and_goes_on_exactly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, which the command refuses; from a loss scale that is far too large."""
    monkeypatch.setattr(loop, "check_amp", lambda *_: None)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**12))
    real, moved = Descent.step, list[tuple[bool, bool]]()

    def watched(self: Descent, *how: Any) -> torch.Tensor:
        before = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        norm = real(self, *how)
        after = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        moved.append((bool(norm.isfinite()), not torch.equal(before, after)))
        return norm

    monkeypatch.setattr(Descent, "step", watched)
    states = stopped_and_straight(images, tmp_path, monkeypatch, ("--amp", "float16"))
    norms = [line["gradient_norm"] for line in log_lines(tmp_path / "straight") if "losses" in line]
    assert 0 < norms.count(None) < 6
    assert moved == 2 * [(norm is not None, norm is not None) for norm in norms]
    assert states[0]["scaler"]["scale"] == 2.0 ** (12 - norms.count(None))


def test_gradients_that_stay_infinite_end_the_run_in_float16_too(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "check_amp", lambda *_: None)
    real = Descent.backward

    def broken(self: Descent, loss: torch.Tensor) -> None:
        real(self, loss)
        next(self.model.parameters()).grad[0] = torch.inf

    monkeypatch.setattr(Descent, "backward", broken)
    assert imagenet.main(flags(images, tmp_path, "--amp", "float16", "--log-every", 1, steps=30)) == 1
    assert "the loss or its gradient is not finite in epoch 5 after step 17" in capsys.readouterr().err


def test_float16_is_refused_without_a_gpu(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imagenet.main(flags(images, tmp_path / "out", "--amp", "float16")) == 1
    assert "amp float16 is for CUDA GPUs, and the device is cpu; set amp to None or bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 5, "steps": 5}, "warmup 5: expected a number of steps from 0 to below all 5"),
        ({"warmup": -1}, "warmup -1: expected"),
        ({"decay": "cosin"}, "decay of the learning rate 'cosin' is not known; did you mean 'cosine'"),
        ({"ema": 1.0}, r"ema 1.0: expected a number between 0 and 1"),
        ({"ema": 0.0}, r"ema 0.0: expected"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing of the labels is"):
        LossWeights(smoothing=smoothing)


@pytest.mark.parametrize(("flag", "value"), [("--ema", "1"), ("--ema", "0"), ("--warmup", "-1"), ("--label-smoothing", "1")])
def test_flags_out_of_range_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        imagenet.arguments(["--data", str(tmp_path), "--model", "cnn", flag, value])
    assert caught.value.code == 2
    assert f"{flag}: {value} is not " in capsys.readouterr().err
