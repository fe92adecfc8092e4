"""Maps with gradients written by hand, against PyTorch's own operators and numerical differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnf_brain import CNNF, small_net
from cnnf_brain.model.autograd import Convolved, Dense, Matched, Spread, Windows, chosen, layout, unpooled
from cnnf_brain.model.layers import FeatureNorm, Norm

FORMATS = [torch.contiguous_format, torch.channels_last]
KERNELS = [((3, 3), (0, 0)), ((3, 3), (1, 1)), ((5, 2), (2, 0)), ((1, 1), (0, 0))]


def drawn(*shape: int, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    return (values.contiguous(memory_format=memory_format) if len(shape) == 4 else values).requires_grad_()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "padding"), KERNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_spread_is_the_transposed_convolution(memory_format: Any, kernel: Any, padding: Any, channels: int) -> None:
    g, weight = drawn(2, 6, 7, 5, memory_format=memory_format), drawn(6, channels, *kernel)
    made, expected = Spread.apply(g, weight, padding), F.conv_transpose2d(g, weight, padding=padding)
    assert torch.allclose(made, expected, rtol=1e-12, atol=1e-12)
    along = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(made, (g, weight), along), torch.autograd.grad(expected, (g, weight), along), strict=True
    ):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "padding"), KERNELS)
def test_a_convolution_of_images_has_the_gradients_of_conv2d(memory_format: Any, kernel: Any, padding: Any) -> None:
    x, weight, bias = drawn(2, 3, 7, 6, memory_format=memory_format), drawn(6, 3, *kernel), drawn(6)
    made, expected = Convolved.apply(x, weight, bias, padding), F.conv2d(x, weight, bias, padding=padding)
    assert torch.equal(made, expected)
    along = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(made, (x, weight, bias), along),
        torch.autograd.grad(expected, (x, weight, bias), along),
        strict=True,
    ):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_a_matrix_has_the_gradients_of_linear_and_they_are_added_up_in_place(shape: Any) -> None:
    x, weight, bias = drawn(*shape), drawn(6, 4), drawn(6)
    made, expected = Dense.apply(x, weight, bias), F.linear(x, weight, bias)
    assert torch.equal(made, expected)
    found, wanted = (torch.autograd.grad(y.square().sum(), (x, weight, bias)) for y in (made, expected))
    assert all(torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12) for mine, theirs in zip(found, wanted, strict=True))
    total = Dense.apply(x, weight, bias).sum() + (Dense.apply(2 * x, weight, bias) @ weight).sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        total.backward()
    sums = {event.key for event in profile.key_averages(group_by_input_shape=True) if [6, 4] in event.input_shapes[:1]}
    assert {"aten::add", "aten::add_"} & sums == {"aten::add_"}
    assert torch.autograd.gradgradcheck(Dense.apply, (x, weight, bias))


def test_gradients_of_gradients() -> None:
    x, g, weight = drawn(1, 1, 4, 4), drawn(1, 2, 3, 3), drawn(2, 1, 2, 2)
    assert torch.autograd.gradgradcheck(lambda x, w: Convolved.apply(x, w, None, (0, 0)), (x, weight))
    assert torch.autograd.gradgradcheck(lambda g, w: Spread.apply(g, w, (0, 0)), (g, weight))
    assert torch.autograd.gradgradcheck(norm_feedback, (g, drawn(1, 2, 2, 2)))


def test_no_negative_zeros_reach_the_gates() -> None:
    made = Spread.apply(torch.full((1, 2, 3, 3), -0.0), torch.ones(2, 1, 3, 3), (0, 0))
    assert not torch.signbit(made).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_half_the_bits_the_sum_over_the_kernel_is_not_rounded_at_each_step(dtype: torch.dtype) -> None:
    g, weight = drawn(1, 4, 6, 6).detach().to(dtype), drawn(4, 1, 3, 3).detach().to(dtype)
    made = Spread.apply(g, weight, (0, 0))
    exact = F.conv_transpose2d(g.double(), weight.double())
    assert made.dtype == dtype
    assert (made.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_what_is_unpooled_is_chosen_again(memory_format: Any) -> None:
    x, g = drawn(2, 3, 6, 4, memory_format=memory_format).detach(), drawn(2, 3, 3, 2, memory_format=memory_format)
    top, at = F.max_pool2d(x, 2, return_indices=True)
    assert layout(at) == memory_format
    assert torch.equal(chosen(x, at), top)
    made = unpooled(g, at, Windows((2, 2), (2, 2), (0, 0), False), torch.Size((6, 4)))
    assert layout(made) == memory_format
    assert torch.equal(made, F.max_unpool2d(g, at, 2, output_size=[6, 4]))  # type: ignore[arg-type]
    along = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad(made, g, along)
    assert torch.equal(found, along.flatten(2).gather(2, at.flatten(2)).view_as(at))
    assert torch.autograd.gradcheck(
        lambda g: unpooled(g, at, Windows((2, 2), (2, 2), (0, 0), False), torch.Size((6, 4))), (g,)
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("gate", ["none", "ReLU", "AdaReLU"])
def test_norm_scale_and_gate_in_one(memory_format: Any, scaled: bool, gate: str) -> None:
    if gate == "none" and not scaled:
        pytest.skip("does nothing")
    f, wish = drawn(2, 3, 6, 5, memory_format=memory_format), torch.tensor([2.0, 0.5]).double().view(2, 1, 1, 1)
    wish, guide = wish.requires_grad_() if scaled else None, drawn(2, 3, 5, 6).detach().mT  # type: ignore[assignment]
    made = Matched.apply(f, wish, gate != "none", guide if gate == "AdaReLU" else None)
    norm = f.square().sum((1, 2, 3), keepdim=True).sqrt()
    sign = {"none": f.sign(), "ReLU": torch.ones_like(f), "AdaReLU": guide.sign()}[gate]
    expected = (torch.where(f * sign > 0, f * wish / norm if scaled else f, 0.0), norm)
    along, given = [torch.randn_like(value) for value in expected], (f, wish) if scaled else (f,)
    gradients = [torch.autograd.grad(values, given, along) for values in (made, expected)]
    for found, wanted in zip((*made, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def norm_feedback(g: torch.Tensor, unmasked: torch.Tensor) -> torch.Tensor:
    return Norm("norm", FeatureNorm(g.shape[1]).double()).feedback(g, g.shape, None, unmasked)


def test_the_feedback_of_the_norm() -> None:
    assert torch.autograd.gradcheck(norm_feedback, (drawn(2, 3, 2, 2), drawn(2, 3, 1, 1)))


@pytest.mark.parametrize("name", ["relu1@1:feedback", "norm2@1:feedback", "norm2@1", "pool2@2"])
def test_the_small_net_keeps_its_layout_in_both_directions(name: str) -> None:
    """A map that falls back to the other layout costs each pass after it a conversion."""
    model = small_net(iterations=2).to(memory_format=torch.channels_last)
    ((_, map_),) = model.unroll(torch.randn(2, 1, 28, 28), return_layers=[name]).layers.items()
    assert layout(map_) == torch.channels_last


def test_the_network_differs_by_rounding_alone_from_one_without_these_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4))
    model, x = CNNF(layers.double(), iterations=2), drawn(2, 3, 8, 8)
    given = (x, *model.parameters())
    mine = torch.autograd.grad(model(x).square().sum(), given)
    monkeypatch.setattr("cnnf_brain.model.layers.FEW", 0)
    for found, expected in zip(mine, torch.autograd.grad(model(x).square().sum(), given), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
