"""CNNF as a network: stateless, independent of the batch, the CNN's own parameters; what a call keeps; when it stops."""

from __future__ import annotations

import doctest
import math
from copy import deepcopy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import cnnf_brain
from cnnf_brain import CNNF, LayerAt


def small(seed: int = 0, **options: Any) -> CNNF:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).double()
    return CNNF(network, **{"iterations": 3, "step": 0.5, "match_norm": True, **options}).eval()


def images(n: int = 4, size: tuple[int, int] = (12, 14), seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_batches_in_a_row_equal_two_fresh_models() -> None:
    one, x, y = small(), images(seed=1), images(seed=2)
    first, second = deepcopy(one)(x), deepcopy(one)(y)
    assert torch.equal(one(x), first)
    assert torch.equal(one(y), second)


@pytest.mark.parametrize("size", [(12, 14), (9, 9), (31, 8)])
def test_results_do_not_depend_on_the_batch(size: Any) -> None:
    model, x = small(), images(5, size)
    whole = model(x)
    for rows in ([0], [4, 1], [2, 3, 0]):
        assert torch.allclose(model(x[rows]), whole[rows], rtol=1e-10, atol=1e-12)


def test_parameters_are_the_cnns_and_weight_decay_acts_once() -> None:
    model = small()
    assert list(model.state_dict()) == [
        *("0.weight", "0.bias", "3.0.weight", "3.0.bias", "6.weight", "6.bias"),
    ]
    assert sum(p.numel() for p in model.parameters()) == 6 * 27 + 6 + 8 * 54 + 8 + 32 * 5 + 5
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3)
    model(images()).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (1 - 0.1 * 0.3) - 0.1 * gradients[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "arch", ["alexnet", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("vgg11", "vgg11_bn", "vgg16"))]
)
def test_with_0_iterations_it_is_torchvisions(arch: Any) -> None:
    torch.manual_seed(0)
    theirs = models.get_model(arch, weights=None, num_classes=7).eval()
    ours = cnnf_brain.from_torchvision(arch, iterations=0, num_classes=7).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 72)
    with torch.inference_mode():
        assert (ours(x) - theirs(x)).abs().max() <= 1e-5


def test_0_iterations_are_the_sequential_itself_in_training_too() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))
    model, x = CNNF(network, iterations=0), torch.randn(2, 1, 6, 6)
    torch.manual_seed(3)
    expected = network(x)
    torch.manual_seed(3)
    assert torch.equal(model(x), expected)


def test_a_call_overrides_the_number_of_iterations() -> None:
    model, x = small(), images()
    logits = model.unroll(x).logits
    assert logits.shape == (4, 4, 5)
    for t in range(4):
        assert torch.equal(model(x, iterations=t), logits[t])
    with pytest.raises(ValueError, match=r"iterations is -1, expected a whole number >= 0"):
        model(x, iterations=-1)


def test_only_what_is_asked_for_is_kept() -> None:
    model, x = small(), images()
    plain = model.unroll(x)
    assert (plain.layers, plain.reconstruction, plain.consistency, plain.states) == ({}, None, None, None)
    result = model.unroll(x, return_layers=["3.0@2", "2@1:feedback", "input@1"], return_reconstruction=True)
    assert set(result.layers) == {LayerAt("3.0", 2), LayerAt("2", 1, True), LayerAt("input", 1)}
    assert result.layers[LayerAt("2", 1, True)].shape == (4, 6, 6, 7)
    assert result.reconstruction.shape == (4, *x.shape)
    assert torch.equal(result.reconstruction[0], x)
    moved = x + 0.5 * (result.reconstruction[1] - x)  # the step towards what feedback generated
    assert torch.equal(result.layers[LayerAt("input", 1)], moved)


def test_a_matched_reconstruction_has_the_norm_of_the_clean_target() -> None:
    x = images()
    made = small().unroll(x, return_reconstruction=True).reconstruction
    assert torch.allclose(made.flatten(2).norm(dim=2), x.flatten(1).norm(dim=1).expand(4, -1), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({}, "3.9@1", r"layer '3.9' is not known; did you mean"),
        ({}, "3.0@4", r"3.0@4: iteration 4 is not run; the network runs 3"),
        ({"target": "2"}, "1@1", r"1@1: feedback goes down to the target '2' alone"),
        ({"target": "2"}, "1@0:feedback", r"feedback goes down to the target"),
    ],
)
def test_layers_that_cannot_be_kept(options: Any, at: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options).unroll(images(), return_layers=[at])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "7"}, r"layer '7' is not known"),
        ({"target": "6"}, r"target '6' is the last layer"),
        ({"step": 0}, r"step is 0, expected a positive number"),
        ({"step": math.inf}, r"step is inf, expected a positive number"),
        ({"ada_relu": "both"}, r"ada_relu is 'both', expected 'signed' or 'printed'"),
        ({"tolerance": -1.0}, r"tolerance is -1.0"),
        ({"iterations": 1.5}, r"iterations is 1.5"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


class Gated(nn.Conv2d):
    """Computes something else than its parent."""


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Sigmoid(), r"layer '0.1' is a Sigmoid, which has no feedback rule; supported: Conv2d, Linear, ReLU"),
        (Gated(3, 3, 1), r"layer '0.1' is a Gated"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), r"0.1: Conv2d with padding_mode='reflect'"),
        (nn.MaxPool2d(2, return_indices=True), r"0.1: MaxPool2d with return_indices=True"),
        (nn.BatchNorm2d(3, track_running_stats=False), r"0.1: BatchNorm2d without running statistics"),
    ],
)
def test_layers_without_a_rule_are_named(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNNF(nn.Sequential(nn.Sequential(nn.ReLU(), layer)))


@pytest.mark.parametrize(
    "hooked", [nn.utils.weight_norm, nn.utils.spectral_norm, lambda one: one.register_forward_hook(print)]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_hooks_would_not_run_and_are_refused(hooked: Any) -> None:
    layer = nn.Conv2d(3, 3, 1)
    hooked(layer)
    with pytest.raises(ValueError, match=r"layer '1.0' has hooks, which CNNF would not run; remove them"):
        CNNF(nn.Sequential(nn.ReLU(), nn.Sequential(layer)))


def test_batch_normalisation_in_training_mode_and_other_modules_are_errors() -> None:
    model = CNNF(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)))
    with pytest.raises(ValueError, match=r"1: BatchNorm2d is in training mode"):
        model.train()(torch.randn(2, 3, 6, 6))
    with pytest.raises(TypeError, match=r"CNNF takes an nn.Sequential, not a Linear"):
        CNNF(nn.Linear(2, 2))  # type: ignore[arg-type]


def literal_consistency(model: CNNF, x: torch.Tensor) -> torch.Tensor:
    """The three residuals of every iteration written out from the states, (3, N+1, B): y, z, h."""
    result = model.unroll(x, return_states=True, return_reconstruction=True)
    rows = []
    for t, state in enumerate(result.states):  # type: ignore[arg-type]
        made = state.generated.flatten(1)
        made = made * (x.flatten(1).norm(dim=1) / made.norm(dim=1))[:, None]  # norms are matched here
        h = (state.target.flatten(1) - made).norm(dim=1) / made.norm(dim=1)
        wrong, gates = torch.zeros(len(x), dtype=x.dtype), 0
        for i, f in state.gate_inputs.items():
            g, layer = state.feedback[i], model.feedback_layers[i]
            if isinstance(layer.module, nn.ReLU):
                best, now = ((f * g > 0) | ((g == 0) & (f > 0))), layer.bits(state.latents[i])
            else:
                top, low = (nn.functional.max_pool2d(s * f, 2, return_indices=True)[1] for s in (1, -1))
                best, now = torch.where(g >= 0, top, low), state.latents[i]
            wrong += (best != now).flatten(1).sum(1)
            gates += g[0].numel()
        y = torch.zeros(len(x))
        if t:
            y = (result.logits[t - 1] - result.logits[t]).norm(dim=1) / result.logits[t].norm(dim=1)
        rows.append(torch.stack([y, wrong / gates, h]))
    return torch.stack(rows, dim=1)


def test_self_consistency_is_that_of_definition_2_1() -> None:
    model, x = small(), images()
    found = model.unroll(x, return_consistency=True).consistency
    expected = literal_consistency(model, x)
    for residual, wanted in zip((found.y, found.z, found.h), expected, strict=True):
        assert torch.allclose(residual, wanted, rtol=1e-10, atol=1e-12)
    assert found.z[0].max() > 0  # else the test would not see a wrong gate
    assert found.h[-1].max() < found.h[0].min()


def test_an_image_stops_once_it_is_self_consistent_whatever_stands_beside_it() -> None:
    x = images(6)
    free = small(iterations=12, step=1.0)
    worst = free.unroll(x, return_consistency=True).consistency.worst()
    tolerance = worst.median().item()
    expected = torch.tensor([next((t for t in range(12) if row[t] <= tolerance), 12) for row in worst.T])
    assert expected.float().std() > 0  # some stop earlier than others
    model = small(iterations=12, step=1.0, tolerance=tolerance)
    result = model.unroll(x, return_layers=["3.0@12"])
    assert torch.equal(result.iterations_run, expected)  # type: ignore[arg-type]
    for i, t in enumerate(expected.tolist()):
        alone = free.unroll(x[i : i + 1], iterations=t, return_layers=[f"3.0@{t}"])
        assert torch.allclose(result.logits[-1, i], alone.logits[-1, 0], rtol=1e-9)
        assert torch.allclose(
            result.layers[LayerAt("3.0", 12)][i], alone.layers[LayerAt("3.0", t)][0], rtol=1e-9, atol=1e-12
        )
    assert torch.equal(model.unroll(x[2:3]).iterations_run, expected[2:3])  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["cnnf", "layers", "settings", "state", "zoo"])
def test_examples_in_docstrings(module: str) -> None:
    found = doctest.testmod(import_module(f"cnnf_brain.model.{module}"))
    assert found.attempted
    assert not found.failed
