"""The gradient of FeatureNorm, written out by hand for speed, against numerical differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnf_brain.model.layers import FeatureNorm


@pytest.mark.parametrize("kind", ["rms", "l2"])
@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 2)])
def test_the_gradient_is_that_of_the_map(kind: str, shape: Any) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(2, dtype=torch.float64)
    norm = FeatureNorm(2, kind).double()

    def function(x: Any, bias: Any) -> Any:
        return torch.func.functional_call(norm, {"bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, bias.requires_grad_()))
    assert torch.autograd.gradgradcheck(function, (x, bias))
    if len(shape) == 4:
        assert torch.autograd.gradcheck(function, (x.detach().to(memory_format=torch.channels_last).requires_grad_(), bias))


def test_the_map_is_divided_by_its_size_image_by_image() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    assert torch.allclose(FeatureNorm(2, "l2")(x), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64))
    rms = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).double() / torch.tensor([[12.5**0.5], [2.0**0.5]]).double()
    assert torch.allclose(FeatureNorm(2, "rms")(x), rms)


def test_an_empty_map_has_a_gradient() -> None:
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    FeatureNorm(2)(x).sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]
