"""Feedback is autograd's vector-Jacobian product with the gates held; pooling against brute force."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from model.drawn import draw_model, draw_network, inner
from oracles.feedback import Pool, conv_matrix, max_windows, routes
from torch import nn

from cnnf_brain import CNNF, FeatureNorm
from cnnf_brain.model.cnnf import following
from cnnf_brain.model.layers import MaxPool, averaging, plan

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def trained_batch_norm(channels: Any, affine: bool = True) -> Any:
    layer = nn.BatchNorm2d(channels, affine=affine)
    layer.running_mean, layer.running_var = torch.randn(channels), torch.rand(channels) + 0.5
    if affine:
        nn.init.normal_(layer.weight)
    return layer.eval()


AFFINE = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), (4, 8, 9)),
    "conv stride 2, odd and even size": (lambda: nn.Conv2d(4, 6, 3, stride=2), (4, 8, 9)),
    "conv stride 3, padding 1, dilation 2": (lambda: nn.Conv2d(4, 2, (3, 2), 3, (1, 2), 2), (4, 10, 11)),
    "conv stride above kernel": (lambda: nn.Conv2d(4, 2, 2, stride=5), (4, 11, 9)),
    "conv groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 5)),
    "conv depthwise": (lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), (4, 7, 5)),
    "conv same, odd kernel": (lambda: nn.Conv2d(4, 3, 3, padding="same"), (4, 7, 6)),
    "conv same, even kernel": (lambda: nn.Conv2d(4, 3, (2, 4), padding="same"), (4, 7, 6)),
    "conv same, even kernel, dilation 2": (lambda: nn.Conv2d(4, 2, (4, 2), padding="same", dilation=(1, 3)), (4, 7, 8)),
    "conv same, groups": (lambda: nn.Conv2d(4, 4, 2, padding="same", groups=2), (4, 5, 5)),
    "conv valid": (lambda: nn.Conv2d(4, 3, 3, padding="valid", stride=2), (4, 8, 8)),
    "conv 1x1 stride 2": (lambda: nn.Conv2d(4, 3, 1, stride=2), (4, 8, 7)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "linear over the last axis of a map": (lambda: nn.Linear(6, 5), (4, 3, 6)),
    "avg": (lambda: nn.AvgPool2d(2), (3, 7, 6)),
    "avg overlapping": (lambda: nn.AvgPool2d(3, 2), (3, 8, 9)),
    "avg stride above kernel": (lambda: nn.AvgPool2d(2, 4), (3, 9, 9)),
    "avg padded, pad counted": (lambda: nn.AvgPool2d(3, 2, 1), (3, 8, 9)),
    "avg padded, pad not counted": (lambda: nn.AvgPool2d((3, 2), 2, 1, count_include_pad=False), (3, 8, 9)),
    "avg ceil mode": (lambda: nn.AvgPool2d(3, 2, ceil_mode=True), (3, 8, 6)),
    "avg ceil mode, padded": (lambda: nn.AvgPool2d(3, 3, 1, True), (3, 8, 9)),
    "avg ceil mode, padded, not counted": (lambda: nn.AvgPool2d(3, 3, 1, True, False), (3, 8, 9)),
    "avg divisor override": (lambda: nn.AvgPool2d(2, 1, 1, True, True, 7), (3, 5, 6)),
    "adaptive avg, divisible": (lambda: nn.AdaptiveAvgPool2d(3), (3, 6, 9)),
    "adaptive avg, overlapping bins": (lambda: nn.AdaptiveAvgPool2d((3, 5)), (3, 7, 8)),
    "adaptive avg, more bins than cells": (lambda: nn.AdaptiveAvgPool2d(7), (3, 3, 5)),
    "adaptive avg, one axis kept": (lambda: nn.AdaptiveAvgPool2d((None, 2)), (3, 5, 5)),
    "adaptive avg, size kept": (lambda: nn.AdaptiveAvgPool2d(5), (3, 5, 5)),
    "flatten": (lambda: nn.Flatten(), (3, 4, 5)),
    "flatten from the second axis": (lambda: nn.Flatten(2), (3, 4, 5)),
    "batch norm": (lambda: trained_batch_norm(3), (3, 4, 5)),
    "batch norm, not affine": (lambda: trained_batch_norm(3, affine=False), (3, 4, 5)),
    "dropout, evaluation": (lambda: nn.Dropout(0.5).eval(), (3, 4, 5)),
}


@pytest.mark.parametrize("name", AFFINE)
def test_feedback_of_an_affine_layer_is_its_vector_jacobian_product(name: str) -> None:
    torch.manual_seed(0)
    make, shape = AFFINE[name]
    module = make().double()  # type: ignore[no-untyped-call]
    (layer,) = plan(nn.Sequential(module))
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    expected = module(x)
    out, z = layer.forward(x, None)
    assert z is None
    assert torch.equal(out, expected)
    g = torch.randn_like(out)
    (vjp,) = torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(layer.feedback(g, x.shape, None, None), vjp, **EXACT)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", AFFINE)
def test_the_bias_of_an_affine_layer_is_its_output_for_zeros(name: str) -> None:
    torch.manual_seed(0)
    make, shape = AFFINE[name]
    module = make().double()  # type: ignore[no-untyped-call]
    (layer,) = plan(nn.Sequential(module))
    x, below = torch.randn(2, *shape, dtype=torch.float64), torch.randn(1, *shape, dtype=torch.float64)
    torch.testing.assert_close(
        layer.bias(below, None) - module(torch.zeros_like(below)), module(x + below)[:1] - module(x)[:1]
    )


def test_dropout_in_training_holds_one_mask_over_iterations_and_both_directions() -> None:
    torch.manual_seed(0)
    module = nn.Dropout(0.3)
    (layer,) = plan(nn.Sequential(module))
    x = torch.randn(4, 50, dtype=torch.float64, requires_grad=True)
    out, mask = layer.forward(x, None)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.7])
    again, held = layer.forward(2 * x, mask)
    assert torch.equal(held, mask)  # type: ignore[arg-type]
    torch.testing.assert_close(again, 2 * out)
    g = torch.randn_like(out)
    (vjp,) = torch.autograd.grad(out, x, g)
    torch.testing.assert_close(layer.feedback(g, x.shape, mask, None), vjp, **EXACT)  # type: ignore[arg-type]
    other = layer.forward(x, None)[1]
    assert not torch.equal(other, mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_feedback_of_the_normalisation_is_the_product_with_its_size_held_times_the_ratio(kind: str) -> None:
    """VJP with F = size(f) held is g/F; feedback is g/G, with G the size of the map at the gate above."""
    torch.manual_seed(0)
    norm = FeatureNorm(3, kind).double()
    (layer,) = plan(nn.Sequential(norm))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    g, above = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    size = lambda a: (a.square().sum((1, 2, 3)) / (1 if kind == "l2" else a[0].numel())).sqrt().view(-1, 1, 1, 1)  # noqa: E731
    held = size(x).detach()  # type: ignore[no-untyped-call]
    (vjp,) = torch.autograd.grad(x / held + norm.bias.view(-1, 1, 1), x, g)
    torch.testing.assert_close(layer.feedback(g, x.shape, None, above), vjp * held / size(above), **EXACT)  # type: ignore[arg-type, no-untyped-call]
    torch.testing.assert_close(layer.feedback(g, x.shape, None, None), vjp * held / size(g), **EXACT)  # type: ignore[arg-type, no-untyped-call]
    torch.testing.assert_close(layer.forward(x, None)[0], x / held + norm.bias.view(-1, 1, 1), **EXACT)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(40))
def test_feedback_of_a_whole_random_network_is_its_vector_jacobian_product_at_every_iteration(seed: int) -> None:
    model, x = draw_model(seed, iterations=2)
    clean, _ = model.below_target(x)
    h, given = clean, {}  # type: ignore[var-annotated]
    for _ in range(3):
        h = h.detach().requires_grad_()
        state = model.sweep(h, given)
        y = torch.randn_like(state.output)
        (vjp,) = torch.autograd.grad(state.output, h, y)
        state.output = y
        with torch.no_grad():
            model.generate(state, clean)
            torch.testing.assert_close(state.generated, vjp, **EXACT)  # type: ignore[arg-type]
            h, given = following(state, model.step_towards(h, state.reconstruction), None)  # type: ignore[arg-type]


def test_feedback_at_iteration_0_is_the_jacobian_of_the_plain_network() -> None:
    for seed in range(6):
        network, shape = draw_network(seed)
        network.eval()
        x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
        logits = network(x)
        (vjp,) = torch.autograd.grad(logits, x, logits.detach())
        result = CNNF(network, iterations=1).unroll(x.detach(), return_reconstruction=True)
        torch.testing.assert_close(result.reconstruction[1], vjp, **EXACT)  # type: ignore[arg-type]


def test_the_printed_adarelu_is_not_the_vector_jacobian_product_where_f_and_g_are_negative() -> None:
    torch.manual_seed(0)
    signed, printed = (plan(nn.Sequential(nn.ReLU()), printed=p)[0] for p in (False, True))
    f = torch.tensor([2.0, -2.0, 2.0, -2.0], requires_grad=True)
    g = torch.tensor([3.0, 3.0, -3.0, -3.0])
    for layer, out, vjp in (
        (signed, [2.0, 0.0, 0.0, -2.0], [3.0, 0.0, 0.0, -3.0]),
        (printed, [2.0, 0.0, 0.0, 2.0], [3.0, 0.0, 0.0, 3.0]),
    ):
        a, z = layer.forward(f, g)
        assert layer.bits(z).tolist() == [True, False, False, True]  # type: ignore[arg-type]
        assert a.tolist() == out
        assert torch.autograd.grad(a, f, g)[0].tolist() == vjp
        assert layer.feedback(g, f.shape, z, None).tolist() == [3.0, 0.0, 0.0, -3.0]


def test_a_tie_at_g_0_opens_the_gate_for_positive_f() -> None:
    (layer,) = plan(nn.Sequential(nn.ReLU()))
    f = torch.tensor([1.0, -1.0, 0.0, 0.0, -0.0, -0.0])
    g = torch.tensor([0.0, 0.0, 1.0, -1.0, 1.0, -1.0])
    out, z = layer.forward(f, g)
    assert layer.bits(z).tolist() == [True, False, False, False, False, False]  # type: ignore[arg-type]
    assert out.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("normalised", [False, True])
def test_feedback_maps_hold_no_negative_zeros(normalised: bool) -> None:
    """Gates read the sign bit of g; -0.0 would count as negative, which it must not."""
    torch.manual_seed(0)
    zeros = 0
    for seed in range(12):
        model, x = draw_model(seed, normalised=normalised)
        for state in model.unroll(x, return_states=True).states:
            for g in state.guides.values():
                zeros += int((g == 0).sum())
                assert not bool(((g == 0) & g.signbit()).any())
    assert zeros > 100


def test_a_negative_gain_makes_no_negative_zeros() -> None:
    norm = nn.BatchNorm2d(1).eval()
    nn.init.constant_(norm.weight, -2.0)
    (layer,) = plan(nn.Sequential(norm))
    back = layer.feedback(torch.zeros(1, 1, 2, 2), torch.Size([1, 1, 2, 2]), None, None)
    assert not back.signbit().any()


POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d(3, 2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(3, 1, 1),
    nn.MaxPool2d((2, 3), (1, 2), (1, 0)),
    nn.MaxPool2d(2, 3),
    nn.MaxPool2d(2, 3, 1, ceil_mode=True),
    nn.MaxPool2d(2, 1, 1, 2),
    nn.MaxPool2d(2, 4, dilation=3),
    nn.MaxPool2d(3, 3, 1, 2, ceil_mode=True),
]


@pytest.mark.parametrize("module", POOLS, ids=str)
@pytest.mark.parametrize("values", ["distinct", "ties", "negative"])
def test_adapool_against_brute_force(module: Any, values: str) -> None:
    """Chosen values and positions by loops over windows; the scattered feedback by loops over outputs."""
    torch.manual_seed(0)
    (layer,) = plan(nn.Sequential(module))
    for height, width in ((7, 8), (9, 6)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        x = {"distinct": x, "ties": x.mul(1.5).round(), "negative": x - 5}[values]
        windows, shape = max_windows(module, x.shape[1:])
        g = torch.randn(2, *shape, dtype=torch.float64)
        for guide in (None, g):
            out, z = layer.forward(x, guide)
            assert out.shape == (2, *shape)
            back = layer.feedback(g, x.shape, z, None)
            for image in range(2):
                flat = x[image].flatten().numpy()
                at = routes(Pool(windows, height * width), flat, None if guide is None else g[image].flatten().numpy())
                np.testing.assert_array_equal(out[image].flatten(), flat[at])
                np.testing.assert_array_equal(z[image].flatten(), at % (height * width))
                expected = np.zeros_like(flat)
                for j, position in enumerate(at):
                    expected[position] += float(g[image].flatten()[j])
                np.testing.assert_allclose(back[image].flatten(), expected, **EXACT)  # type: ignore[call-overload]


def test_adapool_chooses_by_the_sign_of_g_in_a_window_computed_by_hand() -> None:
    (layer,) = plan(nn.Sequential(nn.MaxPool2d(2)))
    x = torch.tensor([[[[1.0, 4.0, -1.0, -4.0], [4.0, 2.0, -4.0, -2.0]]]])
    for g, out, positions in (
        ([0.5, 0.0], [4.0, -1.0], [1, 2]),
        ([-0.5, -3.0], [1.0, -4.0], [0, 3]),
        ([0.0, -1e-30], [4.0, -4.0], [1, 3]),
    ):
        values, z = layer.forward(x, torch.tensor(g).view(1, 1, 1, 2))
        assert values.flatten().tolist() == out
        assert z.flatten().tolist() == positions
    assert isinstance(layer, MaxPool)


def test_output_padding_over_many_convolutions() -> None:
    """The feedback map has the input's size and is the adjoint, for every kernel, stride, padding and dilation."""
    torch.manual_seed(0)
    tried = 0
    for k, s, p, d, size in product((1, 2, 3, 5), (1, 2, 3, 4), (0, 1, 2), (1, 2), (7, 8, 9, 10)):
        if size + 2 * p < d * (k - 1) + 1:
            continue
        module = nn.Conv2d(1, 2, (k, 2), (s, 2), (p, 1), (d, 1), bias=False).double()
        (layer,) = plan(nn.Sequential(module))
        x = torch.randn(1, 1, size, 5, dtype=torch.float64)
        out = module(x)
        g = torch.randn_like(out)
        back = layer.feedback(g, x.shape, None, None)
        assert back.shape == x.shape
        torch.testing.assert_close(inner(back, x), inner(g, out), **EXACT)  # type: ignore[arg-type]
        tried += 1
    assert tried > 300


def test_the_literal_convolution_is_torchs() -> None:
    """The oracle itself, against torch's convolution (it shares no code with it)."""
    torch.manual_seed(0)
    module = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2).double()
    x = torch.randn(1, 4, 7, 8, dtype=torch.float64)
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    matrix, offset, shape = conv_matrix(weight, bias, (4, 7, 8), (2, 1), ((1, 1), (2, 2)), (1, 2), 2)
    expected = module(x).detach()
    assert shape == tuple(expected.shape[1:])
    np.testing.assert_allclose(matrix @ x.flatten().numpy() + offset, expected.flatten(), **EXACT)  # type: ignore[call-overload]


@pytest.mark.parametrize(("size", "bins"), [(7, 3), (3, 7), (8, 4), (5, 5), (1, 4), (9, 2)])
def test_the_averaging_matrix_is_torchs_adaptive_pooling(size: int, bins: int) -> None:
    x = torch.randn(1, 1, size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.adaptive_avg_pool2d(x, (bins, 1)).flatten()
    torch.testing.assert_close(averaging(size, bins, x) @ x.flatten(), expected, **EXACT)  # type: ignore[arg-type]
