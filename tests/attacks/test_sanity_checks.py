"""The checks against a false sense of security: they pass on an open network and fail on a masked one."""

from __future__ import annotations

from typing import Any

import torch
from attacks.planes import drawn, linear

from cnnf_brain.attacks import Threat, sanity_checks
from cnnf_brain.attacks.sanity_checks import breaks_everything, examine, never_falls, not_stronger, zero_gradients


def test_an_open_network_passes_every_check() -> None:
    _, threat = linear(4)
    images, labels = drawn(40, threat)
    found = examine(threat, images, labels, 0.01, steps=(1, 5, 20), epsilons=(0.005, 0.01, 0.02, 1.0))
    assert len(found) == 5
    assert [finding.holds for finding in found] == [True] * 5, found


def test_a_single_epsilon_is_examined_too() -> None:
    _, threat = linear(4)
    images, labels = drawn(10, threat)
    _, over_epsilon, large, *_ = examine(threat, images, labels, 0.01, steps=(1, 5), epsilons=1.0)
    assert over_epsilon.detail == "1: 100.0 %"
    assert large.holds is True


def test_a_masked_network_fails_them() -> None:
    """The network sees images rounded to eighths: no gradient, though no image is any safer."""
    _, open_ = linear(4)

    def rounded(images: Any) -> Any:
        return open_.scored((8 * images).round() / 8)

    threat = Threat("rounded", rounded, lambda images: rounded(images) + 0 * images.sum())
    images, _ = drawn(40, open_)
    labels = threat.predict(images)
    by_name = {finding.name: finding for finding in examine(threat, images, labels, 0.1, steps=(1, 5, 20))}
    assert by_name["gradients are not zero"].holds is False
    assert "100.0 %" in by_name["gradients are not zero"].detail
    noise = (threat.predict((images + 0.1 * torch.randn_like(images).sign()).clamp(0, 1)) != labels).double().mean().item()
    assert not_stronger("noise", "nothing", noise, 0.0).holds is False


def test_the_gate_of_each_check() -> None:
    assert never_falls("epsilon", [0.1, 0.3, 0.2], [0.2, 0.9, 0.5]).holds is True
    assert never_falls("epsilon", [0.1, 0.2, 0.3], [0.2, 0.9, 0.7]).holds is False
    assert never_falls("epsilon", [0.1, 0.2, 0.3], [0.2, 0.9, 0.895]).holds is True  # within the slack
    assert never_falls("epsilon", [0.1, 0.2, 0.3], [0.2, 0.195, 0.188]).holds is False  # small falls add up
    assert never_falls("epsilon", [0.1], [0.2]).holds is None
    assert breaks_everything(1.0, 1.0).holds is True
    assert breaks_everything(1.0, 0.9).holds is False
    assert breaks_everything(0.3, 0.2).holds is None
    assert not_stronger("Square", "PGD", 0.4, 0.5).holds is True
    assert not_stronger("Square", "PGD", 0.5, 0.4).holds is False


def test_without_a_right_answer_nothing_is_said_of_gradients() -> None:
    _, threat = linear(4)
    images, labels = drawn(5, threat)
    assert zero_gradients(threat, images, (labels + 1) % 4).holds is None
    assert sanity_checks.zero_gradients(threat, images, labels).holds is True
