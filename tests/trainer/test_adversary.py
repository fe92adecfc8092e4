"""Training on adversarial images: what a step sees, against a computation by hand; stopping and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_training_loop import StopAfter, images, network, trainer

from cnnf_brain.datasets.mnist import scale
from cnnf_brain.trainer import loop
from cnnf_brain.trainer.config import LossWeights
from cnnf_brain.trainer.loop import NonFiniteLoss
from cnnf_brain.trainer.small import Adversary


def test_fgsm_is_one_step_of_twice_epsilon_in_minus_1_to_1() -> None:
    model, batch = network(iterations=1), images(8)
    x = scale(batch.images)
    model.eval()
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf, iterations=0), batch.labels).backward()
    expected = (x + 2 * 0.1 * leaf.grad.sign()).clamp(-1, 1)
    model.train()
    made = Adversary("only", "fgsm", 0.1).perturb(model, x, batch.labels, 0)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
    assert model.training


@pytest.mark.parametrize("attack", ["fgsm", "pgd7", "pgd40"])
def test_the_images_stay_in_the_ball_and_their_loss_grows(attack: str) -> None:
    model, batch = network(iterations=1, dropout=0.0), images(30)
    x = scale(batch.images)
    made = Adversary("only", attack, 0.1, None if attack == "fgsm" else 0.02).perturb(model, x, batch.labels, 3)
    assert (made - x).abs().max() <= 0.2 + 1e-6
    assert made.abs().max() <= 1
    with torch.no_grad():
        before, after = (F.cross_entropy(model(values, iterations=0), batch.labels) for values in (x, made))
    assert after > before + 0.1


def test_random_starts_follow_from_seed_and_step() -> None:
    model, batch = network(), images(8)
    x = scale(batch.images)

    def made(seed: Any, step: Any) -> Any:
        torch.manual_seed(step + 17)  # the global generator plays no part
        return Adversary("only", "pgd7", 0.3, seed=seed).perturb(model, x, batch.labels, step)

    assert torch.equal(made(0, 5), made(0, 5))
    assert not torch.equal(made(0, 5), made(0, 6))
    assert not torch.equal(made(0, 5), made(1, 5))


@pytest.mark.parametrize("target", ["input", "0"])
def test_the_loss_is_that_of_the_paper(target: str) -> None:
    """Cross-entropy on clean and adversarial images; both reconstruct the clean image's features."""
    model = network(iterations=2, dropout=0.0)
    model.target, model.start = target, model.index(target) + 1
    batch, adversary = images(8), Adversary("augment", "pgd7", 0.1)
    x, labels = scale(batch.images), batch.labels
    adversarial = adversary.perturb(model, x, labels, 4)
    h = x if target == "input" else model.get_submodule("0")(x)
    parts = []
    for values in (x, adversarial):
        made = model.unroll(values, return_reconstruction=True).reconstruction
        entropy = sum(F.cross_entropy(model(values, iterations=t), labels) for t in range(3))
        error = sum(F.mse_loss(made[t], h.detach()) for t in (0, 1, 2))
        parts.append((entropy + 0.1 * error) / 3)
    total, terms = loop.losses(model, *adversary.batch(model, x, labels, 4)[:2], LossWeights(), torch.cat([h, h]))
    torch.testing.assert_close(total, (parts[0] + parts[1]) / 2)
    assert terms["reconstruction"][0] > 0  # of the adversarial images, already in the first pass

    only = Adversary("only", "pgd7", 0.1).batch(model, x, labels, 4)
    assert torch.equal(only[0], adversarial)
    total, _ = loop.losses(model, *only[:2], LossWeights(), only[2])
    torch.testing.assert_close(total, parts[1])


def test_both_kinds_of_images_reach_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    real = loop.losses

    def spy(model: Any, batch: Any, labels: Any, weights: Any, clean: Any, **options: Any) -> Any:
        seen.append((len(batch), len(labels), len(clean), torch.equal(batch[: len(batch) // 2], clean[: len(batch) // 2])))
        return real(model, batch, labels, weights, clean, **options)

    monkeypatch.setattr(loop, "losses", spy)
    trainer(tmp_path, epochs=1, perturb=Adversary("augment", "fgsm", 0.1)).run()
    assert seen == [(40, 40, 40, True)] * 3 + [(12, 12, 12, True)]


@pytest.mark.parametrize("mode", ["only", "augment"])
@pytest.mark.parametrize("step", [1, 5])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, mode: str, step: int) -> None:
    adversary = Adversary(mode, "pgd7", 0.2)
    straight = trainer(tmp_path / "straight", epochs=2, perturb=adversary)
    assert straight.run()
    first = trainer(tmp_path / "stopped", epochs=2, perturb=adversary)
    assert not first.run(StopAfter(first, step))
    second = trainer(tmp_path / "stopped", epochs=2, perturb=adversary)
    torch.manual_seed(999)
    assert second.resume() is not None
    assert second.run()
    plain = trainer(tmp_path / "plain", epochs=2)
    assert plain.run()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert not all(torch.equal(v, plain.model.state_dict()[n]) for n, v in straight.model.state_dict().items())


def test_a_divergence_is_told_as_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, lr=1e36, perturb=Adversary("only", "pgd7", 0.2))
    with pytest.raises(NonFiniteLoss, match="Train anew with a smaller learning rate"):
        run.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("both", "fgsm", 0.1), "did you mean|Known: only, augment"),
        (("only", "pgd8", 0.1), "did you mean 'pgd7'"),
        (("only", "pgd7", -0.1), "epsilon -0.1"),
        (("only", "pgd7", 1.1), "epsilon 1.1"),
        (("only", "pgd7", float("nan")), "epsilon nan"),
        (("only", "pgd7", 0.1, 0.0), "above 0"),
        (("only", "fgsm", 0.1, 0.1), "FGSM is one step"),
    ],
)
def test_bad_settings(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversary(*arguments)
