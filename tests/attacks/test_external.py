"""The attacks of other libraries on our threats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attacks.planes import SHAPE, breaking_epsilon, drawn, linear

from cnnf_brain.attacks import PGD, NonFiniteOutput, Threat
from cnnf_brain.attacks.external import APGD, HopSkipJump, Square, TargetedAPGD

pytest.importorskip("pyautoattack", reason="needs the extra robustness")
pytest.importorskip("art", reason="needs the extra robustness")

WHITE_BOX = [APGD(steps=20), TargetedAPGD(steps=20)]
ALL = [*WHITE_BOX, Square(queries=100), HopSkipJump(rounds=3, evaluations=100)]


def test_apgd_on_a_linear_network_is_the_closed_form() -> None:
    weights, threat = linear()
    images, labels = drawn(100, threat)
    needed = breaking_epsilon(weights, images, labels)
    epsilons = [0.0, 0.005, 0.02]
    success = APGD(steps=20)(threat, images, labels, epsilons).success
    for epsilon, found in zip(epsilons, success, strict=True):
        clear = (needed - epsilon).abs() > 2e-4
        assert torch.equal(found[clear], needed[clear] < epsilon)


def test_black_box_attacks_come_near_the_closed_form_and_never_beyond_it() -> None:
    weights, threat = linear()
    images, labels = drawn(12, threat)
    needed = breaking_epsilon(weights, images, labels)
    epsilon = float(needed.median())
    for attack, least in ((Square(queries=800), 0.9), (HopSkipJump(rounds=8, evaluations=400), 0.4)):
        success = attack(threat, images, labels, [epsilon, 0.1]).success
        assert not success[0][needed > epsilon + 1e-4].any()
        far = needed < 0.5 * epsilon
        assert far.sum() >= 2
        assert success[0][far].double().mean() >= least
        assert success[1].double().mean() >= 0.9


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_results_lie_in_the_ball_are_repeatable_and_leave_the_random_numbers_alone(attack: Any) -> None:
    _, threat = linear(5)
    images, labels = drawn(10, threat)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = attack(threat, images, labels, [0.01, 0.05])
    after = torch.rand(1).item(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert after == (torch.rand(1).item(), np.random.rand())  # noqa: NPY002
    again = attack(threat, images, labels, [0.01, 0.05])
    for epsilon, clipped, same, success in zip([0.01, 0.05], first.clipped, again.clipped, first.success, strict=True):
        assert torch.equal(clipped, same)
        assert (clipped - images).abs().max() <= epsilon + 1e-6
        assert torch.equal(success, threat.predict(clipped) != labels)
    assert first.success[1].sum() >= first.success[0].sum()


@pytest.mark.parametrize("attack", WHITE_BOX, ids=repr)
def test_white_box_attacks_follow_what_is_attacked_and_are_judged_by_what_is_scored(attack: Any) -> None:
    _, threat = linear(5)
    images, labels = drawn(20, threat)
    blind = Threat("blind", threat.scored, lambda x: threat.attacked(x) * 0 + threat.attacked(x).detach())
    seen = attack(threat, images, labels, [0.02]).success
    unseen = attack(blind, images, labels, [0.02]).success
    assert unseen.sum() < seen.sum()


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_a_single_epsilon_gives_an_outcome_of_one_entry(attack: Any) -> None:
    _, threat = linear(5)
    images, labels = drawn(6, threat)
    single, listed = attack(threat, images, labels, 0.02), attack(threat, images, labels, [0.02])
    assert single.success.shape == (1, 6)
    assert torch.equal(single.clipped[0], listed.clipped[0])


def test_apgd_is_no_weaker_than_pgd() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 30), torch.nn.Tanh(), torch.nn.Linear(30, 5))
    threat = Threat("network", network, network)
    images = torch.rand(60, *SHAPE)
    labels = threat.predict(images)
    ours = PGD(20, relative_step=0.2)(threat, images, labels, [0.05]).success.double().mean().item()
    theirs = APGD(steps=20)(threat, images, labels, [0.05]).success.double().mean().item()
    assert 0.05 < ours < 1
    assert theirs >= ours - 0.04


@pytest.mark.parametrize("attack", ALL, ids=repr)
def test_they_refuse_what_ours_refuse(attack: Any) -> None:
    _, threat = linear(5)
    images, labels = drawn(4, threat)
    with pytest.raises(ValueError, match="epsilon"):
        attack(threat, images, labels, [-0.1])
    with pytest.raises(ValueError, match="label 5"):
        attack(threat, images, labels * 0 + 5, [0.1])
    bad = Threat("bad", lambda x: threat.scored(x) * float("nan"), threat.attacked)
    with pytest.raises(NonFiniteOutput):
        attack(bad, images, labels, [0.1])


def test_the_targeted_loss_needs_four_classes() -> None:
    _, threat = linear(3)
    images, labels = drawn(4, threat)
    with pytest.raises(ValueError, match="4 classes or more"):
        TargetedAPGD()(threat, images, labels, [0.1])


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    _, threat = linear()
    images, labels = drawn(4, threat)
    monkeypatch.setitem(sys.modules, "pyautoattack.square", None)
    with pytest.raises(ImportError, match=r"cnnf-brain\[robustness\]"):
        Square()(threat, images, labels, [0.1])
