"""The training step against a computation by hand; stopping, dying and resuming without a trace in the weights."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from idx_files import drawn
from torch import nn

from cnnf_brain import CNNF
from cnnf_brain.datasets.mnist import ImageSet, scale
from cnnf_brain.trainer import checkpoint, loop
from cnnf_brain.trainer.loop import Log, LossWeights, NonFiniteLoss, Progress, Schedule, Stop, Trainer

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


def trainer(folder, *, epochs=3, save_every=1000, configuration=CONFIGURATION, lr=0.01) -> Trainer:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    schedule = Schedule(epochs, BATCH, seed=0, save_every=save_every)
    return Trainer(model, optimizer, LossWeights(), schedule, configuration, folder, scheduler=scheduler)


class StopAfter:
    """Stands for Stop: requests a stop when ``step`` has been made."""

    def __init__(self, run: Trainer, step: int) -> None:
        self.run, self.step = run, step

    @property
    def requested(self):
        return signal.SIGTERM if self.run.progress.step >= self.step else None


def log_lines(folder) -> list[dict]:
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_outcome(a: Trainer, b: Trainer, folder_a, folder_b) -> None:
    """Weights, optimizer, scheduler and log equal in every bit."""
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    for key, state in a.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b.optimizer.state_dict()["state"][key][name]), name
    assert a.scheduler.state_dict() == b.scheduler.state_dict()
    assert log_lines(folder_a) == log_lines(folder_b)


@pytest.fixture
def straight(tmp_path):
    """A run that was never stopped."""
    run = trainer(tmp_path / "straight")
    assert run.run(images(), images(30, seed=1))
    return run


def test_the_step_is_that_of_the_losses_computed_by_hand():
    model, batch = network(iterations=2, dropout=0.0), images(8)
    x, parameters = scale(batch.images), list(model.parameters())
    made = model.unroll(x, return_reconstruction=True).reconstruction
    entropy = sum(-model(x, iterations=t).log_softmax(1)[range(8), batch.labels].sum() / 8 for t in range(3))
    error = sum((made[t] - x).square().sum() / x.numel() for t in (1, 2))
    total = (entropy + 0.1 * error) / 3
    gradients = torch.autograd.grad(total, parameters)
    expected = [p.detach() - 0.5 * g for p, g in zip(parameters, gradients, strict=True)]

    optimizer = torch.optim.SGD(parameters, lr=0.5)
    terms = loop.train_step(model, optimizer, x, batch.labels, LossWeights())
    assert set(terms) == {"cross_entropy", "reconstruction"}
    for p, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_in_mixed_precision_the_pass_is_in_bfloat16_and_weights_and_validation_are_not(tmp_path, monkeypatch):
    seen: list[tuple[torch.dtype, bool]] = []
    run = trainer(tmp_path, epochs=1)
    run.amp = "bfloat16"
    original = CNNF.forward

    def watched(self, x, **options):
        result = original(self, x, **options)
        logits = result.logits if hasattr(result, "logits") else result
        seen.append((logits.dtype, self.training))
        return result

    monkeypatch.setattr(CNNF, "forward", watched)
    before = [p.detach().clone() for p in run.model.parameters()]
    assert run.run(images(), images(30, seed=1))
    assert {dtype for dtype, training in seen if training} == {torch.bfloat16}
    assert {dtype for dtype, training in seen if not training} == {torch.float32}
    for p, was in zip(run.model.parameters(), before, strict=True):
        assert p.dtype == torch.float32
        assert not torch.equal(p, was)


def test_a_step_in_mixed_precision_is_close_to_one_in_float32():
    moved = []
    for amp in (None, "bfloat16"):
        model, batch = network(iterations=0, dropout=0.0), images(8)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loop.train_step(model, optimizer, scale(batch.images), batch.labels, LossWeights(0.0), amp=amp)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert not torch.equal(*moved)
    assert (moved[1] - moved[0]).norm() < 0.05 * moved[0].norm()


def test_only_losses_with_a_weight_are_computed():
    assert LossWeights(0.0, 0.0, 0.0).active() == {"cross_entropy": 1.0}
    assert LossWeights(0.1, 0.0, 0.5).active() == {"cross_entropy": 1.0, "reconstruction": 0.1, "norm": 0.5}


@pytest.mark.parametrize("term", ["reconstruction", "latent", "norm"])
def test_each_loss_weight_reaches_the_weights(term):
    moved = []
    for weight in (0.0, 1.0):
        model, batch = network(dropout=0.0), images(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        weights = LossWeights(**{**dict.fromkeys(("reconstruction", "latent", "norm"), 0.0), term: weight})
        loop.train_step(model, optimizer, scale(batch.images), batch.labels, weights)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(*moved)


def test_the_printed_sum_is_the_mean_with_a_weight_times_the_elements():
    moved = []
    for weights in (LossWeights(0.01, reduction="sum"), LossWeights(0.01 * 28 * 28), LossWeights(0.01)):
        model, batch = network(dropout=0.0), images(8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loop.train_step(model, optimizer, scale(batch.images), batch.labels, weights)
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2])
    with pytest.raises(ValueError, match="reduction of the reconstruction loss 'total' is not known"):
        LossWeights(reduction="total")


def test_configurations_from_before_the_reduction_was_there_stay_the_same():
    assert LossWeights().configuration() == {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0}
    assert LossWeights(reduction="sum").configuration() == {**LossWeights().configuration(), "reduction": "sum"}


def test_accuracy_is_the_share_of_right_answers_at_each_iteration_over_unequal_batches():
    model, test = network(iterations=2), images(31)
    model.train()
    shares = loop.accuracy(model, test, batch_size=7)
    assert model.training
    model.eval()
    for t in range(3):
        answers = [model(scale(test.images[i : i + 1]), iterations=t).argmax().item() for i in range(31)]
        right = sum(a == b for a, b in zip(answers, test.labels.tolist(), strict=True))
        assert shares[t] == pytest.approx(right / 31, abs=1e-12)


def test_every_image_is_seen_once_in_every_epoch_in_another_order(tmp_path, monkeypatch):
    whole, seen = images(), []
    numbers = {image.numpy().tobytes(): number for number, image in enumerate(scale(whole.images))}

    def spy(_model, _optimizer, batch, labels, _weights, _clean, _amp):
        assert _clean is _amp is None
        seen.append([numbers[image.numpy().tobytes()] for image in batch])
        assert labels.tolist() == [i % 10 for i in seen[-1]]
        return {"cross_entropy": torch.zeros(2)}

    monkeypatch.setattr(loop, "train_step", spy)
    run = trainer(tmp_path, epochs=2)
    run.scheduler = None
    run.run(whole, images(30))
    assert [len(batch) for batch in seen] == [20, 20, 20, 6] * 2
    first, second = ([i for batch in seen[k : k + 4] for i in batch] for k in (0, 4))
    assert sorted(first) == sorted(second) == list(range(N_TRAIN))
    assert first != second


def test_a_seed_gives_another_order():
    assert Schedule(1, 1, seed=0).order(0, 50).tolist() != Schedule(1, 1, seed=1).order(0, 50).tolist()


def test_it_learns(tmp_path):
    model = network(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run = Trainer(model, optimizer, LossWeights(), Schedule(25, BATCH, seed=0), CONFIGURATION, tmp_path)
    run.run(images(), images(30, seed=1))
    assert loop.accuracy(run.model, images()) == [1.0, 1.0]
    losses = [line["losses"]["cross_entropy"][1] for line in log_lines(tmp_path)]
    assert len(losses) == 25
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("step", [1, 3, 4, 6, 11])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, straight, step):
    folder = tmp_path / "stopped"
    first = trainer(folder)
    assert not first.run(images(), images(30, seed=1), StopAfter(first, step))
    assert first.progress.step == step
    second = trainer(folder)
    torch.manual_seed(12345)  # whatever another process's generator is at
    assert second.resume() == checkpoint.paths(folder / "checkpoints")[0]
    assert second.run(images(), images(30, seed=1))
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


@pytest.mark.parametrize("part", ["set_random_states", "position", "optimizer"])
def test_the_comparison_notices_a_state_that_is_not_restored(tmp_path, straight, monkeypatch, part):
    folder = tmp_path / "stopped"
    first = trainer(folder)
    first.run(images(), images(30, seed=1), StopAfter(first, 6))
    second = trainer(folder)
    if part == "set_random_states":
        monkeypatch.setattr(checkpoint, part, lambda *_: None)
    if part == "optimizer":
        monkeypatch.setattr(second.optimizer, "load_state_dict", lambda _: None)
    second.resume()
    if part == "position":
        second.progress = Progress(**{**vars(second.progress), "batch": 0})
    second.run(images(), images(30, seed=1))
    with pytest.raises(AssertionError):
        assert_same_outcome(straight, second, tmp_path / "straight", folder)


class Killed(BaseException):
    """Stands for kill -9: nothing handles it."""


@pytest.mark.parametrize("where", ["train_step", "accuracy", "save"])
def test_a_run_that_died_anywhere_resumes_from_its_last_checkpoint(tmp_path, straight, monkeypatch, where):
    folder = tmp_path / "died"
    first = trainer(folder, save_every=2)
    owner, name = (checkpoint, "save_step") if where == "save" else (loop, where)
    real, calls = getattr(owner, name), []

    def dies_in_the_second_epoch(*args, **kwargs):
        calls.append(1)
        if first.progress.step >= 5:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dies_in_the_second_epoch)
    with pytest.raises(Killed):
        first.run(images(), images(30, seed=1))
    monkeypatch.undo()
    second = trainer(folder, save_every=2)
    assert second.resume() is not None
    assert 0 < second.progress.step <= first.progress.step
    assert second.run(images(), images(30, seed=1))
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_death_between_the_log_and_the_checkpoint_leaves_no_line_twice(tmp_path, straight, monkeypatch):
    folder = tmp_path / "died"
    first = trainer(folder)
    real = checkpoint.save_step

    def dies(*args, **kwargs):
        if first.progress.epoch == 2:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_step", dies)
    with pytest.raises(Killed):
        first.run(images(), images(30, seed=1))
    monkeypatch.undo()
    assert [line["epoch"] for line in log_lines(folder)] == [1, 2]
    second = trainer(folder)
    second.resume()
    second.run(images(), images(30, seed=1))
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_run(tmp_path, straight):
    folder = tmp_path / "damaged"
    first = trainer(folder, save_every=2)
    first.run(images(), images(30, seed=1), StopAfter(first, 7))
    newest = checkpoint.paths(folder / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    second = trainer(folder, save_every=2)
    with pytest.warns(RuntimeWarning, match="trying the one before"):
        second.resume()
    assert second.progress.step == 6
    second.run(images(), images(30, seed=1))
    assert_same_outcome(straight, second, tmp_path / "straight", folder)


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path):
    run = trainer(tmp_path, epochs=1)
    run.run(images(), images(30))
    other = {"seed": 1, "losses": {"reconstruction": 0.2}, "target": "input"}
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now; losses.reconstruction: 0.1 there, 0.2 now; target: absent"):
        trainer(tmp_path, configuration=other).resume()


def test_other_surroundings_are_allowed_with_a_warning(tmp_path, monkeypatch):
    run = trainer(tmp_path, epochs=1)
    run.run(images(), images(30))
    monkeypatch.setattr(loop, "environment", lambda _: {"torch": "1.0", "device": "cpu", "threads": 64})
    with pytest.warns(RuntimeWarning, match=r"threads: \d+ there, 64 now.*not bit for bit"):
        trainer(tmp_path).resume()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    real = loop.losses

    def fails_in_the_second_epoch(*args):
        total, terms = real(*args)
        return (total * float("nan"), terms) if run.progress.step == 5 else (total, terms)

    monkeypatch.setattr(loop, "losses", fails_in_the_second_epoch)
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan in epoch 2 after step 5; .*checkpoint-000000004.safetensors"):
        run.run(images(), images(30))
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_real_divergence_leaves_only_good_checkpoints(tmp_path):
    run = trainer(tmp_path, lr=1e36, save_every=1)
    with pytest.raises(NonFiniteLoss, match="last good checkpoint"):
        run.run(images(), images(30))
    for path in checkpoint.paths(tmp_path / "checkpoints"):
        assert all(torch.isfinite(value).all() for value in checkpoint.load(path)["model"].values())


def test_the_log_survives_half_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    log = Log(path, done=1)
    log.write({"epoch": 2, "again": True})
    assert log.read() == [{"epoch": 1}, {"epoch": 2, "again": True}]
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_for_a_stop_and_get_their_handlers_back(number):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with Stop() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_ends_at_once():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
