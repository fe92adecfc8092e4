"""What each attacker sees of a CNN-F."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnf_brain import CNNF, Keep
from cnnf_brain.attacks import PGD, threats
from cnnf_brain.attacks.threats import SmoothGates, openness


def network(iterations: int = 2, dtype: torch.dtype = torch.float64, **options) -> CNNF:
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 24, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5))
    return CNNF(nn.Sequential(*layers), iterations=iterations, step=0.5, match_norm=True, **options).to(dtype).eval()


def drawn(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(logits, images: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    x = images.detach().requires_grad_()
    return torch.autograd.grad((logits(x) * direction).sum(), x)[0]


def test_images_in_0_to_1_become_the_networks_range():
    model, x = network(), drawn()
    assert torch.equal(threats.end_to_end(model).scored(x), model(2 * x - 1))


def test_the_first_pass_is_attacked_and_the_whole_network_scored():
    model, x = network(), drawn()
    threat = threats.first_pass(model)
    assert torch.equal(threat.attacked(x), model(2 * x - 1, iterations=0))
    assert torch.equal(threat.scored(x), model(2 * x - 1, iterations=2))
    assert torch.equal(threats.first_pass(model, 1).scored(x), model(2 * x - 1, iterations=1))


@pytest.mark.parametrize("name", ["end_to_end", "every_iteration"])
def test_the_gradient_is_that_of_the_unrolled_network(name):
    """Central differences; a difference that steps over a kink of a gate is left out by comparing two step sizes."""
    model, x = network(), drawn(3)
    threat = getattr(threats, name)(model)
    weights = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = gradient(threat.attacked, x, weights)
    told = 0
    for seed in range(20):
        u = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        slopes = [
            ((threat.attacked(x + h * u) - threat.attacked(x - h * u)) * weights).sum((1,)) / (2 * h) for h in (1e-6, 1e-7)
        ]
        smooth = (slopes[0] - slopes[1]).abs() < 1e-5
        told += int(smooth.sum())
        torch.testing.assert_close((exact * u).sum((1, 2, 3))[smooth], slopes[0][smooth], rtol=1e-4, atol=1e-5)
    assert told > 30


def test_every_iteration_is_the_mean_of_the_logits():
    model, x = network(), drawn()
    expected = sum(model(2 * x - 1, iterations=t) for t in range(3)) / 3
    torch.testing.assert_close(threats.every_iteration(model).attacked(x), expected)


@pytest.mark.parametrize("ada_relu", ["signed", "printed"])
def test_smooth_gates_change_nothing_forward(ada_relu):
    model, x = network(ada_relu=ada_relu), drawn()
    smooth = SmoothGates(model, 0.3)
    assert torch.equal(smooth(2 * x - 1), model(2 * x - 1))
    assert [p.data_ptr() for p in smooth.parameters()] == [p.data_ptr() for p in model.parameters()]
    for name in ("logits", "reconstruction"):
        kept = [getattr(m(2 * x - 1, keep=Keep(reconstruction=True)), name) for m in (smooth, model)]
        assert torch.equal(*kept)


@pytest.mark.parametrize("ada_relu", ["signed", "printed"])
def test_as_the_temperature_falls_the_smooth_gradient_becomes_the_exact_one(ada_relu):
    model, x = network(1, ada_relu=ada_relu), drawn()
    weights = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = gradient(threats.end_to_end(model).attacked, x, weights)
    cold = gradient(threats.smoothed(model, temperature=1e-9).attacked, x, weights)
    warm = gradient(threats.smoothed(model, temperature=0.5).attacked, x, weights)
    torch.testing.assert_close(cold, exact, rtol=1e-8, atol=1e-10)
    assert (warm - exact).abs().max() > 1e-3 * exact.abs().max()


def test_the_gates_slope_is_that_of_the_sigmoid_by_hand():
    g = torch.tensor([[3.0, -4.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    size = (26 / 4) ** 0.5
    s = openness(g, 0.5)
    torch.testing.assert_close(s, 1 / (1 + torch.exp(-g / (0.5 * size))))
    s.sum().backward()
    torch.testing.assert_close(g.grad, (s * (1 - s) / (0.5 * size)).detach())


def test_a_smooth_gate_is_the_gradient_of_its_printed_form():
    """d/df and d/dg of s max(f, 0) + (1 - s) min(f, 0), by central differences at the hard gate's point."""
    from cnnf_brain.attacks.threats import SmoothReLU
    from cnnf_brain.model.layers import ReLU

    rule = SmoothReLU(ReLU("relu", nn.ReLU(), False), 0.7)
    f, g = (torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    size = g.square().mean(1, keepdim=True).sqrt()

    def soft(f, g):
        s = torch.sigmoid(g / (0.7 * size))
        return s * torch.clamp(f, min=0) + (1 - s) * torch.clamp(f, max=0)

    f1, g1 = f.clone().requires_grad_(), g.clone().requires_grad_()
    by_f, by_g = torch.autograd.grad(rule.forward(f1, g1)[0].sum(), (f1, g1))
    h = 1e-6
    torch.testing.assert_close(by_f, (soft(f + h, g) - soft(f - h, g)) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(by_g, (soft(f, g + h) - soft(f, g - h)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_transfer_follows_the_other_network():
    model, source, x = network(), network(0), drawn()
    with torch.no_grad():
        source.get_submodule("0").weight.neg_()
    threat = threats.transfer(model, source)
    assert torch.equal(threat.attacked(x), source(2 * x - 1))
    assert torch.equal(threat.scored(x), model(2 * x - 1))


@pytest.mark.parametrize("name", ["first_pass", "end_to_end", "every_iteration", "smoothed"])
def test_each_threat_can_be_attacked(name):
    model, x = network(), drawn(8)
    threat = getattr(threats, name)(model)
    labels = threat.predict(x)
    outcome = PGD(15, relative_step=0.15)(threat, x, labels, [0.0, 0.4])
    assert not outcome.success[0].any()
    assert outcome.success[1].sum() >= 2
    assert all(p.grad is None for p in model.parameters())


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call .eval\(\)"):
        threats.first_pass(network().train())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_0(temperature):
    with pytest.raises(ValueError, match="above 0"):
        threats.smoothed(network(), temperature=temperature)
