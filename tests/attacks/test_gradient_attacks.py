"""FGSM and PGD against closed forms and another library; what they refuse."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from attacks.planes import SHAPE, breaking_epsilon, drawn, linear
from torch import nn

from cnnf_brain.attacks import FGSM, PGD, NonFiniteOutput, Threat, paper_step

EPSILONS = (0.0, 0.005, 0.01, 0.02, 0.1)
ATTACKS = [FGSM(), PGD(20, relative_step=0.2), PGD(40, step_size=0.02), PGD(5, relative_step=1.0, random_start=False)]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_on_a_linear_network_success_is_the_closed_form(attack: Any) -> None:
    weights, threat = linear()
    images, labels = drawn(200, threat)
    needed = breaking_epsilon(weights, images, labels)
    outcome = attack(threat, images, labels, EPSILONS)
    assert outcome.success.shape == (len(EPSILONS), 200)
    for epsilon, success in zip(EPSILONS, outcome.success, strict=True):
        clear = (needed - epsilon).abs() > 1e-4
        assert clear.sum() > 190
        assert torch.equal(success[clear], needed[clear] < epsilon)
    assert 0 < outcome.success[1].sum() < 200


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_clipped_images_lie_in_ball_and_bounds_and_success_is_theirs(attack: Any) -> None:
    _, threat = linear(3)
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(50) % 3
    outcome = attack(threat, images, labels, [0.03, 0.7])
    for epsilon, clipped, success in zip([0.03, 0.7], outcome.clipped, outcome.success, strict=True):
        assert (clipped - images).abs().max() <= epsilon + 1e-6
        assert clipped.min() >= 0
        assert clipped.max() <= 1
        assert torch.equal(success, threat.scored(clipped).argmax(1) != labels)
    wrong = threat.scored(images).argmax(1) != labels
    assert torch.equal(attack(threat, images, labels, [0.0]).success[0], wrong)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
@pytest.mark.parametrize(
    "one", [0.02, np.float64(0.02), torch.tensor(0.02, dtype=torch.float64)], ids=["float", "numpy", "torch"]
)
def test_a_single_epsilon_gives_an_outcome_of_one_entry(attack: Any, one: Any) -> None:
    _, threat = linear(3)
    images, labels = drawn(20, threat)
    single, listed = attack(threat, images, labels, one), attack(threat, images, labels, [0.02])
    assert len(single.raw) == len(single.clipped) == 1
    assert torch.equal(single.clipped[0], listed.clipped[0])
    assert torch.equal(single.success, listed.success)


@pytest.mark.parametrize("attack", [FGSM(), PGD(2)])
def test_a_network_without_a_classifier_is_refused(attack: Any) -> None:
    headless = nn.Conv2d(1, 4, 3).eval()
    with pytest.raises(ValueError, match=r"has shape \(1, 4, 4, 4\), expected \(1, classes\)"):
        attack(Threat("headless", headless, headless), torch.rand(2, *SHAPE), torch.zeros(2).long(), 0.1)


def small_network() -> tuple[nn.Module, Threat]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 10)).eval()
    return network, Threat("network", network, network)


@pytest.mark.parametrize("workers", [2, 5])
def test_batches_at_once_change_nothing_and_use_one_thread_each(workers: int) -> None:
    network, _ = small_network()
    network.double()
    threads = torch.get_num_threads()
    seen: set[tuple[str, int]] = set()

    def logits(images: Any) -> Any:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return network(images)

    threat = Threat("network", network, logits)
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.arange(50) % 10
    alone = PGD(3, step_size=0.02, restarts=2, batch_size=7)(threat, images, labels, [0.05, 0.1])
    assert {name for name, _ in seen} == {threading.current_thread().name}
    seen.clear()
    together = PGD(3, step_size=0.02, restarts=2, batch_size=7, workers=workers)(threat, images, labels, [0.05, 0.1])
    for a, b in zip(alone.raw, together.raw, strict=True):
        assert torch.equal(a, b)
    in_workers = {(name, n) for name, n in seen if name != threading.current_thread().name}
    assert in_workers
    assert {n for _, n in in_workers} == {1}
    assert torch.get_num_threads() == threads
    assert repr(PGD(workers=workers)) == repr(PGD())  # the same attack, and the same cell of a grid


def test_an_error_in_one_of_the_batches_at_once_is_the_error_of_the_attack() -> None:
    network, _ = small_network()
    images = torch.rand(12, *SHAPE)
    images[-1] = 1

    def broken(x: Any) -> Any:
        return network(x) * (torch.nan if (x == 1).flatten(1).all(1).any() else 1)

    threads = torch.get_num_threads()
    attack = PGD(2, step_size=0.01, random_start=False, batch_size=3, workers=2)
    with pytest.raises(NonFiniteOutput, match="3 of 3 images"):
        attack(Threat("network", network, broken), images, torch.zeros(12, dtype=torch.int64), [0.0, 0.1])
    assert torch.get_num_threads() == threads


def toolbox(network: Any) -> Any:
    estimators = pytest.importorskip("art.estimators.classification", reason="needs adversarial-robustness-toolbox")
    return estimators.PyTorchClassifier(network, nn.CrossEntropyLoss(), SHAPE, 10, clip_values=(0.0, 1.0), device_type="cpu")


def test_fgsm_is_that_of_the_adversarial_robustness_toolbox() -> None:
    network, threat = small_network()
    peer = toolbox(network)
    from art.attacks.evasion import FastGradientMethod

    images, labels = torch.rand(40, *SHAPE), torch.arange(40) % 10
    theirs = FastGradientMethod(peer, eps=0.1, batch_size=40).generate(images.numpy(), labels.numpy())
    ours = FGSM()(threat, images, labels, [0.1])
    np.testing.assert_allclose(ours.clipped[0].numpy(), theirs, atol=1e-6)


def test_pgd_is_that_of_the_toolbox_and_from_random_starts_as_successful() -> None:
    network, threat = small_network()
    peer = toolbox(network)
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    images = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(5))
    labels = threat.predict(images)
    options = {"eps": 0.06, "eps_step": 0.01, "max_iter": 12, "batch_size": 200, "verbose": False}
    theirs = ProjectedGradientDescentPyTorch(peer, **options).generate(images.numpy(), labels.numpy())
    ours = PGD(12, 0.01, random_start=False)(threat, images, labels, [0.06])
    np.testing.assert_allclose(ours.clipped[0].numpy(), theirs, atol=1e-5)

    np.random.seed(0)  # noqa: NPY002  (the toolbox draws from the global generator)
    started = ProjectedGradientDescentPyTorch(peer, num_random_init=1, **options).generate(images.numpy(), labels.numpy())
    success = (threat.predict(torch.as_tensor(started)) != labels).double().mean().item()
    rate = PGD(12, 0.01)(threat, images, labels, [0.06]).success.double().mean().item()
    assert 0.1 < rate < 0.95
    assert abs(rate - success) <= 0.03


def test_the_size_of_the_batches_changes_nothing() -> None:
    network, threat = small_network()
    network.double()
    images = torch.rand(30, *SHAPE, dtype=torch.float64)
    labels = threat.predict(images)
    whole = PGD(5, 0.01, batch_size=30, restarts=2)(threat, images, labels, [0.05])
    parts = PGD(5, 0.01, batch_size=7, restarts=2)(threat, images, labels, [0.05])
    torch.testing.assert_close(whole.clipped[0], parts.clipped[0], rtol=0, atol=1e-12)
    single = FGSM(batch_size=1)(threat, images, labels, [0.05]).clipped[0]
    torch.testing.assert_close(FGSM()(threat, images, labels, [0.05]).clipped[0], single, rtol=0, atol=1e-12)


def test_seeds_and_restarts() -> None:
    network, threat = small_network()
    network.requires_grad_(False)
    images = torch.rand(100, *SHAPE, generator=torch.Generator().manual_seed(5))
    labels = threat.predict(images)
    once, again, other = (PGD(1, 0.001, seed=seed)(threat, images, labels, [0.05]) for seed in (0, 0, 1))
    assert torch.equal(once.clipped[0], again.clipped[0])
    assert not torch.equal(once.clipped[0], other.clipped[0])
    more = PGD(1, 0.001, restarts=20)(threat, images, labels, [0.05]).success[0]
    assert (more | ~once.success[0]).all()
    assert more.sum() > once.success[0].sum()


def test_the_papers_step_in_units_of_0_to_1() -> None:
    assert [paper_step(epsilon) for epsilon in (0.1, 0.3, 0.31, 0.5)] == [0.01, 0.01, 0.015, 0.015]
    assert PGD().step(0.3) == 0.01
    assert PGD(relative_step=0.25).step(0.2) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilons": [0.1, -0.1]}, r"epsilon -0\.1 is not in \[0, 1\]"),
        ({"epsilons": [1.01]}, "one for 0..255 divided by 255"),
        ({"epsilons": [float("nan")]}, "epsilon nan"),
        ({"epsilons": []}, "epsilons is empty"),
        ({"images": torch.full((4, *SHAPE), -0.1)}, r"outside of \[0, 1\]"),
        ({"images": torch.full((4, *SHAPE), 1.1)}, "give them unnormalised"),
        ({"images": torch.full((4, *SHAPE), float("nan"))}, r"images lie in \[nan, nan\]"),
        ({"images": torch.ones(4, *SHAPE, dtype=torch.uint8)}, "floating point"),
        ({"images": torch.ones(0, *SHAPE), "labels": torch.ones(0).long()}, "n >= 1"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"label 3 is not in 0\.\.2"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, "label -1"),
        ({"labels": torch.tensor([0, 1])}, r"expected \(4,\) whole numbers"),
        ({"labels": torch.zeros(4)}, "whole numbers"),
    ],
)
@pytest.mark.parametrize("attack", [FGSM(), PGD(2)])
def test_bad_arguments_are_refused_before_the_attack(attack: Any, change: Any, message: str) -> None:
    _, threat = linear(3)
    arguments = {"images": torch.full((4, *SHAPE), 0.5), "labels": torch.zeros(4).long(), "epsilons": [0.1], **change}
    with pytest.raises(ValueError, match=message):
        attack(threat, arguments["images"], arguments["labels"], arguments["epsilons"])


@pytest.mark.parametrize("attack", [FGSM(), PGD(2)])
@pytest.mark.parametrize("where", ["scored", "attacked", "gradient"])
def test_a_network_that_returns_nan_is_an_error_and_not_a_robust_network(attack: Any, where: str) -> None:
    _, good = linear(3)

    def bad(images: Any) -> Any:
        if where == "gradient":
            return good.attacked(images) + (images - images).flatten(1).sum(1, keepdim=True).abs().sqrt()
        return good.scored(images) * float("nan")

    threat = Threat("bad", bad if where == "scored" else good.scored, good.attacked if where == "scored" else bad)
    with pytest.raises(NonFiniteOutput, match="NaN or infinite"):
        attack(threat, torch.full((4, *SHAPE), 0.5), torch.zeros(4).long(), [0.1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"workers": 0}, "workers is 0, expected at least 1"),
        ({"step_size": -0.1}, "above 0"),
        ({"relative_step": float("nan")}, "above 0"),
        ({"step_size": 0.1, "relative_step": 0.1}, "not both"),
    ],
)
def test_bad_settings_of_pgd(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(**options)
