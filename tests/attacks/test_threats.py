"""What each attacker sees of a CNN-F."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from cnnf_brain import CNNF
from cnnf_brain.attacks import FGSM, PGD, WithPreprocessing, threats
from cnnf_brain.attacks.threats import SmoothGates, openness
from cnnf_brain.images import Preprocessing
from cnnf_brain.networks import Network

UNITS = Preprocessing(8, (0.5,), (0.5,))  # to [-1, 1]


def network(iterations: int = 2, dtype: torch.dtype = torch.float64, **options: Any) -> CNNF:
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 24, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5))
    return CNNF(nn.Sequential(*layers), iterations=iterations, step=0.5, match_norm=True, **options).to(dtype).eval()


def seen(model: nn.Module) -> WithPreprocessing:
    """A network that takes images in [-1, 1]."""
    return WithPreprocessing(model, UNITS)


def drawn(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(logits: Any, images: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    x = images.detach().requires_grad_()
    return torch.autograd.grad((logits(x) * direction).sum(), x)[0]


def test_images_in_0_to_1_become_the_networks_range() -> None:
    model, x = network(), drawn()
    assert torch.equal(threats.end_to_end(seen(model)).scored(x), model(2 * x - 1))


def vgg_like() -> Network:
    """A CNN-F of colour images in the units of torchvision's VGGs."""
    torch.manual_seed(2)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5))
    module = CNNF(nn.Sequential(*layers), iterations=2, step=0.1, match_norm=True, match_layers=True).double().eval()
    return Network(module, Preprocessing(8), name="VGG-like", weights="random")


def torchvision_network() -> WithPreprocessing:
    torch.manual_seed(3)
    module = pytest.importorskip("torchvision").models.mobilenet_v3_small(weights=None).double().eval()
    return WithPreprocessing(module, Preprocessing(224))


@pytest.mark.parametrize("make", [vgg_like, torchvision_network])
@pytest.mark.parametrize("name", ["first_pass", "end_to_end"])
def test_a_network_is_attacked_in_its_own_units(make: Any, name: str) -> None:
    """The gradient is that of (x - mean) / std, channel by channel, and the outcome an image in [0, 1]."""
    network = make()
    first = {"iterations": 0} if name == "first_pass" and isinstance(network.module, CNNF) else {}
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    threat = getattr(threats, name)(network)
    weights = torch.randn(threat.scored(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    expected = gradient(lambda pixels: network.module((pixels - mean) / std, **first), x, weights)
    torch.testing.assert_close(gradient(threat.attacked, x, weights), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(threat.scored(x), network.module((x - mean) / std))
    wrong = gradient(lambda pixels: network.module(2 * pixels - 1, **first), x, weights)
    assert (expected.sign() != wrong.sign()).double().mean() > 0.01  # the units matter
    outcome = FGSM()(threat, x, threat.predict(x), 0.05)
    assert 0 <= outcome.clipped[0].min() < outcome.clipped[0].max() <= 1
    assert (outcome.clipped[0] - x).abs().max() <= 0.05 + 1e-12


def test_a_callable_is_a_preprocessing() -> None:
    model, x = network(), drawn()
    threat = threats.end_to_end(WithPreprocessing(model, lambda images: 3 * images - 1))
    assert torch.equal(threat.scored(x), model(3 * x - 1))


@pytest.mark.parametrize("name", ["first_pass", "end_to_end", "every_iteration", "smoothed"])
@pytest.mark.parametrize("made", [network, lambda: nn.Linear(3, 2), lambda: WithPreprocessing(network(), None)])  # type: ignore[arg-type]
def test_a_network_that_does_not_say_how_images_enter_it_is_refused(made: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"how images in \[0, 1\] enter it; expected .*WithPreprocessing"):
        getattr(threats, name)(made())
    with pytest.raises(ValueError, match="how images"):
        threats.transfer(seen(network()), made())


@pytest.mark.parametrize("name", ["first_pass", "end_to_end", "every_iteration", "smoothed"])
def test_without_feedback_there_are_no_iterations(name: str) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double().eval()
    x = drawn()
    for none in (0, None):
        threat = getattr(threats, name)(seen(plain), none)
        assert torch.equal(threat.scored(x), plain(2 * x - 1))
        assert torch.equal(threat.attacked(x), plain(2 * x - 1))
    with pytest.raises(ValueError, match="iterations is 2, but a Sequential has no feedback; expected 0 or None"):
        getattr(threats, name)(seen(plain), 2)


def test_the_first_pass_is_attacked_and_the_whole_network_scored() -> None:
    model, x = network(), drawn()
    threat = threats.first_pass(seen(model))
    assert torch.equal(threat.attacked(x), model(2 * x - 1, iterations=0))
    assert torch.equal(threat.scored(x), model(2 * x - 1, iterations=2))
    assert torch.equal(threats.first_pass(seen(model), 1).scored(x), model(2 * x - 1, iterations=1))


@pytest.mark.parametrize("name", ["end_to_end", "every_iteration"])
def test_the_gradient_is_that_of_the_unrolled_network(name: str) -> None:
    """Central differences; a difference that steps over a kink of a gate is left out by comparing two step sizes."""
    model, x = network(), drawn(3)
    threat = getattr(threats, name)(seen(model))
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


def test_every_iteration_is_the_mean_of_the_logits() -> None:
    model, x = network(), drawn()
    expected = sum(model(2 * x - 1, iterations=t) for t in range(3)) / 3
    torch.testing.assert_close(threats.every_iteration(seen(model)).attacked(x), expected)


@pytest.mark.parametrize("ada_relu", ["signed", "printed"])
def test_smooth_gates_change_nothing_forward(ada_relu: str) -> None:
    model, x = network(ada_relu=ada_relu), drawn()
    smooth = SmoothGates(model, 0.3)
    assert torch.equal(smooth(2 * x - 1), model(2 * x - 1))
    assert [p.data_ptr() for p in smooth.parameters()] == [p.data_ptr() for p in model.parameters()]
    for name in ("logits", "reconstruction"):
        kept = [getattr(m.unroll(2 * x - 1, return_reconstruction=True), name) for m in (smooth, model)]
        assert torch.equal(*kept)


def test_smooth_gates_keep_a_layer_that_stands_twice() -> None:
    gate = nn.ReLU()
    layers = OrderedDict(a=nn.Linear(6, 5), r=gate, b=nn.Linear(5, 5), s=gate, c=nn.Linear(5, 3))
    model, x = CNNF(nn.Sequential(layers)).eval(), torch.rand(4, 6)
    smooth = SmoothGates(model, 0.3)
    assert smooth.layer_names == model.layer_names
    assert torch.equal(smooth(x), model(x))


def test_smooth_gates_stop_where_the_network_stops() -> None:
    free, x = network(4), drawn()
    worst = free.unroll(2 * x - 1, return_consistency=True).consistency.worst()[1:-1].detach()
    model = network(4, tolerance=worst.median().item())
    ran = model.unroll(2 * x - 1).iterations_run
    assert ran.min() < ran.max()
    assert torch.equal(SmoothGates(model).unroll(2 * x - 1).iterations_run, ran)  # type: ignore[arg-type]
    assert torch.equal(threats.smoothed(seen(model)).attacked(x), model(2 * x - 1))


@pytest.mark.parametrize("ada_relu", ["signed", "printed"])
def test_as_the_temperature_falls_the_smooth_gradient_becomes_the_exact_one(ada_relu: str) -> None:
    model, x = network(1, ada_relu=ada_relu), drawn()
    weights = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = gradient(threats.end_to_end(seen(model)).attacked, x, weights)
    cold = gradient(threats.smoothed(seen(model), temperature=1e-9).attacked, x, weights)
    warm = gradient(threats.smoothed(seen(model), temperature=0.5).attacked, x, weights)
    torch.testing.assert_close(cold, exact, rtol=1e-8, atol=1e-10)
    assert (warm - exact).abs().max() > 1e-3 * exact.abs().max()


def test_the_gates_slope_is_that_of_the_sigmoid_by_hand() -> None:
    g = torch.tensor([[3.0, -4.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    size = (26 / 4) ** 0.5
    s = openness(g, 0.5)
    torch.testing.assert_close(s, 1 / (1 + torch.exp(-g / (0.5 * size))))
    s.sum().backward()
    torch.testing.assert_close(g.grad, (s * (1 - s) / (0.5 * size)).detach())


def test_a_smooth_gate_is_the_gradient_of_its_printed_form() -> None:
    """d/df and d/dg of s max(f, 0) + (1 - s) min(f, 0), by central differences at the hard gate's point."""
    from cnnf_brain.attacks.threats import SmoothReLU
    from cnnf_brain.model.layers import ReLU

    rule = SmoothReLU(ReLU("relu", nn.ReLU(), False), 0.7)
    f, g = (torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    size = g.square().mean(1, keepdim=True).sqrt()

    def soft(f: Any, g: Any) -> Any:
        s = torch.sigmoid(g / (0.7 * size))
        return s * torch.clamp(f, min=0) + (1 - s) * torch.clamp(f, max=0)

    f1, g1 = f.clone().requires_grad_(), g.clone().requires_grad_()
    by_f, by_g = torch.autograd.grad(rule.forward(f1, g1)[0].sum(), (f1, g1))
    h = 1e-6
    torch.testing.assert_close(by_f, (soft(f + h, g) - soft(f - h, g)) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(by_g, (soft(f, g + h) - soft(f, g - h)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_transfer_follows_the_other_network() -> None:
    model, source, x = network(), network(0), drawn()
    with torch.no_grad():
        source.get_submodule("0").weight.neg_()
    threat = threats.transfer(seen(model), seen(source))
    assert torch.equal(threat.attacked(x), source(2 * x - 1))
    assert torch.equal(threat.scored(x), model(2 * x - 1))


@pytest.mark.parametrize("name", ["first_pass", "end_to_end", "every_iteration", "smoothed"])
def test_each_threat_can_be_attacked(name: str) -> None:
    model, x = network(), drawn(8)
    threat = getattr(threats, name)(seen(model))
    labels = threat.predict(x)
    outcome = PGD(15, relative_step=0.15)(threat, x, labels, [0.0, 0.4])
    assert not outcome.success[0].any()
    assert outcome.success[1].sum() >= 2
    assert all(p.grad is None for p in model.parameters())


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call .eval\(\)"):
        threats.first_pass(seen(network().train()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_0(temperature: Any) -> None:
    with pytest.raises(ValueError, match="above 0"):
        threats.smoothed(seen(network()), temperature=temperature)
