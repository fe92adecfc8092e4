"""The training step against a computation by hand; stopping, dying and resuming without a trace in the weights."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer.idx_files import drawn

from cnnf_brain import CNNF
from cnnf_brain.datasets.mnist import ImageSet, MemoryBatches, scale
from cnnf_brain.trainer import checkpoint, config, loop, small
from cnnf_brain.trainer.checkpoint import Position
from cnnf_brain.trainer.config import LossWeights, Schedule
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.loop import Hooks, NonFiniteLoss, Objective, Run, Trainer
from cnnf_brain.trainer.metrics import EpochLogger, Log
from cnnf_brain.trainer.writer import Writer
from cnnf_brain.work import Stop

CONFIGURATION = {"seed": 0, "losses": {"reconstruction": 0.1}}
N_TRAIN, BATCH = 66, 20  # four batches in an epoch, the last one of six


def images(n: int = N_TRAIN, seed: int = 0) -> ImageSet:
    pixels, labels = drawn(n, seed)
    return ImageSet(torch.tensor(pixels, dtype=torch.uint8), torch.tensor(labels))


def network(iterations: int = 1, dropout: float = 0.3) -> CNNF:
    """A net of a few hundred weights; its dropout draws from torch's generator."""
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 4, 7, stride=7), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 10))
    return CNNF(nn.Sequential(*layers), iterations=iterations, match_norm=True)


def trainer(
    folder: Any,
    *,
    epochs: int = 3,
    save_every: int = 1000,
    configuration: Any = CONFIGURATION,
    lr: float = 0.01,
    perturb: Any = None,
    amp: Any = None,
) -> Trainer:
    """A run over the 66 images, judged on 30 others, whose learning rate decays."""
    model, source, judged = network(), MemoryBatches(images(), BATCH), images(30, seed=1)
    n = source.steps_per_epoch
    return Trainer(
        Objective(model, LossWeights(), amp=amp),
        torch.optim.Adam(model.parameters(), lr=lr, weight_decay=5e-4),
        source,
        Schedule(
            steps=epochs * n,
            learning_rate=lr,
            decay_every=5,
            decay_factor=0.5,
            save_every=save_every,
            validate_every=n,
            log_every=n,
        ),
        Run(folder, configuration),
        Hooks(
            lambda network: small.accuracy(network, judged),
            perturb=perturb and (lambda *batch: perturb.batch(model, *batch)),
            logger=EpochLogger,
            watchful=True,
        ),
        Ranks(),
    )


def train_step(model: Any, optimizer: Any, x: Any, labels: Any, weights: Any, amp: Any = None) -> dict[str, torch.Tensor]:
    """One optimizer step; the terms as they were before it."""
    optimizer.zero_grad()
    total, terms = Objective(model, weights, amp=amp)(x, labels)
    total.backward()
    optimizer.step()
    return terms


class StopAfter:
    """Stands for Stop: requests a stop when ``step`` has been made."""

    def __init__(self, run: Trainer, step: int) -> None:
        self.run, self.step = run, step

    @property
    def requested(self) -> Any:
        return signal.SIGTERM if self.run.position.step >= self.step else None


def log_lines(folder: Any) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_outcome(a: Trainer, b: Trainer, folder_a: Any, folder_b: Any) -> None:
    """Weights, optimizer, learning rate and log equal in every bit."""
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    for key, state in a.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b.optimizer.state_dict()["state"][key][name]), name
    assert a.optimizer.param_groups[0]["lr"] == b.optimizer.param_groups[0]["lr"]
    assert log_lines(folder_a) == log_lines(folder_b)


@pytest.fixture
def straight(tmp_path: Path) -> Any:
    """A run that was never stopped."""
    run = trainer(tmp_path / "straight")
    assert run.run()
    return run


def test_the_step_is_that_of_the_losses_computed_by_hand() -> None:
    model, batch = network(iterations=2, dropout=0.0), images(8)
    x, parameters = scale(batch.images), list(model.parameters())
    made = model.unroll(x, return_reconstruction=True).reconstruction
    entropy = sum(-model(x, iterations=t).log_softmax(1)[range(8), batch.labels].sum() / 8 for t in range(3))
    error = sum((made[t] - x).square().sum() / x.numel() for t in (1, 2))  # type: ignore[misc]
    total = (entropy + 0.1 * error) / 3
    gradients = torch.autograd.grad(total, parameters)
    expected = [p.detach() - 0.5 * g for p, g in zip(parameters, gradients, strict=True)]

    optimizer = torch.optim.SGD(parameters, lr=0.5)
    terms = train_step(model, optimizer, x, batch.labels, LossWeights())
    assert set(terms) == {"cross_entropy", "reconstruction"}
    for p, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("fast_bfloat16")
def test_in_mixed_precision_the_pass_is_in_bfloat16_and_weights_and_validation_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, bool]] = []
    run = trainer(tmp_path, epochs=1, amp="bfloat16")
    original = CNNF.unroll

    def watched(self: Any, x: Any, **options: Any) -> Any:
        result = original(self, x, **options)
        seen.append((result.logits.dtype, self.training))
        return result

    monkeypatch.setattr(CNNF, "unroll", watched)
    before = [p.detach().clone() for p in run.model.parameters()]
    assert run.run()
    assert {dtype for dtype, training in seen if training} == {torch.bfloat16}
    assert {dtype for dtype, training in seen if not training} == {torch.float32}
    for p, was in zip(run.model.parameters(), before, strict=True):
        assert p.dtype == torch.float32
        assert not torch.equal(p, was)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions that are held back here are x86's")
def test_a_processor_without_bfloat16_instructions_is_found_out() -> None:
    code = "import torch\nfrom cnnf_brain.trainer import config\nconfig.check_amp('bfloat16', torch.device('cpu'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ValueError: amp bfloat16: on this processor a convolution takes" in done.stderr


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_mixed_precision_is_refused_where_it_would_be_many_times_slower(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "cost_of", lambda _: 6.0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    with pytest.raises(ValueError, match=r"amp bfloat16: .*has no instructions for it; set amp to None"):
        config.check_amp("bfloat16", torch.device(device))
    config.check_amp(None, torch.device(device))
    with pytest.raises(ValueError, match=r"takes 6\.0 times as long as in float32, as it has no instructions"):
        trainer(tmp_path, amp="bfloat16")
    assert not list(tmp_path.iterdir())


def test_mixed_precision_that_is_a_little_slower_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "cost_of", lambda _: 1.6)
    with pytest.warns(RuntimeWarning, match=r"1\.6 times as long as in float32; without amp the run is faster"):
        trainer(tmp_path, amp="bfloat16")


def test_a_step_in_mixed_precision_is_close_to_one_in_float32() -> None:
    moved = []
    for amp in (None, "bfloat16"):
        model, batch = network(iterations=0, dropout=0.0), images(8)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train_step(model, optimizer, scale(batch.images), batch.labels, LossWeights(0.0), amp=amp)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert not torch.equal(*moved)
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()


def test_only_losses_with_a_weight_are_computed() -> None:
    assert LossWeights(0.0, 0.0, 0.0).active() == {"cross_entropy": 1.0}
    assert LossWeights(0.1, 0.0, 0.5).active() == {"cross_entropy": 1.0, "reconstruction": 0.1, "norm": 0.5}


@pytest.mark.parametrize("term", ["reconstruction", "latent", "norm"])
def test_each_loss_weight_reaches_the_weights(term: str) -> None:
    moved = []
    for weight in (0.0, 1.0):
        model, batch = network(dropout=0.0), images(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        weights = LossWeights(**{**dict.fromkeys(("reconstruction", "latent", "norm"), 0.0), term: weight})  # type: ignore[arg-type]
        train_step(model, optimizer, scale(batch.images), batch.labels, weights)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(*moved)


def test_the_printed_sum_is_the_mean_with_a_weight_times_the_elements() -> None:
    moved = []
    for weights in (LossWeights(0.01, reduction="sum"), LossWeights(0.01 * 28 * 28), LossWeights(0.01)):
        model, batch = network(dropout=0.0), images(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train_step(model, optimizer, scale(batch.images), batch.labels, weights)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2])
    with pytest.raises(ValueError, match="reduction of the reconstruction loss 'total' is not known"):
        LossWeights(reduction="total")


def test_configurations_from_before_the_reduction_was_there_stay_the_same() -> None:
    assert LossWeights().configuration() == {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0}
    assert LossWeights(reduction="sum").configuration() == {**LossWeights().configuration(), "reduction": "sum"}


def test_accuracy_is_the_share_of_right_answers_at_each_iteration_over_unequal_batches() -> None:
    model, test = network(iterations=2), images(31)
    model.train()
    shares = small.accuracy(model, test, batch_size=7).top1
    assert model.training
    model.eval()
    for t in range(3):
        answers = [model(scale(test.images[i : i + 1]), iterations=t).argmax().item() for i in range(31)]
        right = sum(a == b for a, b in zip(answers, test.labels.tolist(), strict=True))
        assert shares[t] == pytest.approx(right / 31, abs=1e-12)


def test_every_image_is_seen_once_in_every_epoch_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = images(), []
    numbers = {image.numpy().tobytes(): number for number, image in enumerate(scale(whole.images))}
    real = loop.losses

    def spy(model: Any, batch: Any, labels: Any, weights: Any, clean: Any, **options: Any) -> Any:
        assert clean is None
        seen.append([numbers[image.numpy().tobytes()] for image in batch])
        assert labels.tolist() == [i % 10 for i in seen[-1]]
        return real(model, batch, labels, weights, clean, **options)

    monkeypatch.setattr(loop, "losses", spy)
    trainer(tmp_path, epochs=2).run()
    assert [len(batch) for batch in seen] == [20, 20, 20, 6] * 2
    first, second = ([i for batch in seen[k : k + 4] for i in batch] for k in (0, 4))
    assert sorted(first) == sorted(second) == list(range(N_TRAIN))
    assert first != second


def test_a_seed_gives_another_order() -> None:
    assert MemoryBatches(images(), 1, seed=0).order(0).tolist() != MemoryBatches(images(), 1, seed=1).order(0).tolist()


def test_it_learns(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=25, lr=0.02)
    run.schedule = replace(run.schedule, decay_factor=1.0)
    run.model.get_submodule("3").p = 0.0  # type: ignore[assignment]
    run.run()
    assert small.accuracy(run.model, images()).top1 == (1.0, 1.0)
    losses = [line["losses"]["cross_entropy"][1] for line in log_lines(tmp_path)]
    assert len(losses) == 25
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("step", [1, 3, 4, 6, 11])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, straight: Any, step: int) -> None:
    folder = tmp_path / "stopped"
    first = trainer(folder)
    assert not first.run(StopAfter(first, step))  # type: ignore[arg-type]
    assert first.position.step == step
    second = trainer(folder)
    torch.manual_seed(12345)  # whatever another process's generator is at
    assert second.resume() == checkpoint.paths(folder / "checkpoints")[0]
    assert second.run()
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_no_rank_leaves_before_the_checkpoint_of_a_stopped_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[int] = []
    monkeypatch.setattr(Ranks, "wait", lambda _: there.append(len(checkpoint.paths(tmp_path / "checkpoints"))))
    run = trainer(tmp_path)
    assert not run.run(StopAfter(run, 1))  # type: ignore[arg-type]
    assert there == [1]


@pytest.mark.parametrize("part", ["seed", "position", "optimizer"])
def test_the_comparison_notices_a_state_that_is_not_restored(
    tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder = tmp_path / "stopped"
    first = trainer(folder)
    first.run(StopAfter(first, 6))  # type: ignore[arg-type]
    second = trainer(folder)
    if part == "seed":
        monkeypatch.setattr(loop, "step_seed", lambda *_: 12345)
    if part == "optimizer":
        monkeypatch.setattr(second.optimizer, "load_state_dict", lambda _: None)
    second.resume()
    if part == "position":
        second.position = Position(**{**vars(second.position), "step": 4})
    second.run()
    with pytest.raises(AssertionError):
        assert_same_outcome(straight, second, tmp_path / "straight", folder)


class Killed(BaseException):
    """Stands for kill -9: nothing handles it."""


@pytest.mark.parametrize("where", ["losses", "accuracy", "save"])
def test_a_run_that_died_anywhere_resumes_from_its_last_checkpoint(
    tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "died"
    first = trainer(folder, save_every=2)
    owner, name = {"losses": (loop, "losses"), "accuracy": (small, "accuracy"), "save": (checkpoint, "write")}[where]
    real, calls = getattr(owner, name), []

    def dies_in_the_second_epoch(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if first.position.step >= 5:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dies_in_the_second_epoch)
    with pytest.raises(Killed):
        first.run()
    monkeypatch.undo()
    second = trainer(folder, save_every=2)
    assert second.resume() is not None
    assert 0 < second.position.step <= first.position.step
    assert second.run()
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_death_between_the_log_and_the_checkpoint_leaves_no_line_twice(
    tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "died"
    first = trainer(folder)
    real = Writer.save

    def dies(self: Writer, step: int, state: Any, **more: Any) -> None:
        if step == 8:
            raise Killed
        real(self, step, state, **more)

    monkeypatch.setattr(Writer, "save", dies)
    with pytest.raises(Killed):
        first.run()
    monkeypatch.undo()
    assert [line["epoch"] for line in log_lines(folder)] == [1, 2]
    second = trainer(folder)
    second.resume()
    second.run()
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_run(tmp_path: Path, straight: Any) -> None:
    folder = tmp_path / "damaged"
    first = trainer(folder, save_every=2)
    first.run(StopAfter(first, 7))  # type: ignore[arg-type]
    newest = checkpoint.paths(folder / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    second = trainer(folder, save_every=2)
    with pytest.warns(RuntimeWarning, match="trying the one before"):
        second.resume()
    assert second.position.step == 6
    second.run()
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1)
    run.run()
    other = {"seed": 1, "losses": {"reconstruction": 0.2}, "target": "input"}
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now; losses.reconstruction: 0.1 there, 0.2 now; target: absent"):
        trainer(tmp_path, configuration=other).resume()


def test_other_surroundings_are_allowed_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, epochs=1)
    run.run()
    monkeypatch.setattr(loop, "environment", lambda _: {"torch": "1.0", "device": "cpu", "threads": 64})
    with pytest.warns(RuntimeWarning, match=r"threads: \d+ there, 64 now.*not bit for bit"):
        trainer(tmp_path).resume()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path)
    real = loop.losses

    def fails_in_the_second_epoch(*args: Any, **options: Any) -> Any:
        total, terms = real(*args, **options)
        return (total * float("nan"), terms) if run.position.step == 5 else (total, terms)

    monkeypatch.setattr(loop, "losses", fails_in_the_second_epoch)
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan in epoch 2 after step 5; .*checkpoint-000000004.safetensors"):
        run.run()
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_real_divergence_leaves_only_good_checkpoints(tmp_path: Path) -> None:
    run = trainer(tmp_path, lr=1e36, save_every=1)
    with pytest.raises(NonFiniteLoss, match="last good checkpoint"):
        run.run()
    for path in checkpoint.paths(tmp_path / "checkpoints"):
        assert all(torch.isfinite(value).all() for value in checkpoint.load(path)["model"].values())


def test_the_log_survives_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    log = Log(path, done=1)
    log.log(2, {"again": True})
    assert log.read() == [{"step": 1}, {"step": 2, "again": True}]
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_for_a_stop_and_get_their_handlers_back(number: Any) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with Stop() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_ends_at_once() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
