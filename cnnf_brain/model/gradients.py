"""Maps over images whose gradients are written by hand: fewer passes over memory, and less held, than autograd's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Normalised(torch.autograd.Function):
    """x / size(x) + bias with its gradient in three passes over the map, where autograd takes ten."""

    @staticmethod
    def forward(x: Tensor, bias: Tensor, inverse: Tensor, n: int) -> Tensor:
        """``inverse`` (B, 1, ...) is 1 / size; size² is the sum of squares over ``n``."""
        return torch.addcmul(bias, x, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        x, bias, inverse, ctx.n = inputs
        ctx.save_for_backward(x, inverse)
        ctx.bias = bias.shape

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # for gradients of gradients
            square = x.square().sum(tuple(range(1, x.dim())), keepdim=True) / ctx.n
            inverse = square.clamp_min(torch.finfo(x.dtype).tiny).rsqrt()
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            along = (g * x).sum(tuple(range(1, x.dim())), keepdim=True) * inverse / ctx.n
            to_x = torch.addcmul(g * inverse, x, along * inverse * inverse, value=-1)
        if ctx.needs_input_grad[1]:
            to_bias = g.sum_to_size(ctx.bias)
        return to_x, to_bias, None, None


class Matched(torch.autograd.Function):
    """x scaled image by image to the norm ``wish`` (B, 1, ...), with its gradient in three passes over the map."""

    @staticmethod
    def forward(x: Tensor, wish: Tensor, norm: Tensor) -> Tensor:
        """``norm`` (B, 1, ...): that of ``x``, which the gradient knows."""
        return x * (wish / norm).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, wish, norm = ctx.saved_tensors
        norm = image_norm(x) if torch.is_grad_enabled() else norm  # for gradients of gradients
        along = inner(g, x).to(norm.dtype) / norm
        to_x = (g * (wish / norm).to(x.dtype)).addcmul_(x, (along * wish / norm**2).to(x.dtype), value=-1)
        return to_x, along, None


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> image by image, (B, 1, ...), without a map of products where both lie in memory alike."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).view(-1, *[1] * (a.dim() - 1))


def image_norm(x: Tensor) -> Tensor:
    """The L2 norm of each image of ``x`` (B, ...), (B, 1, ...), in float32 or better and never quite zero."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True, dtype=dtype)
    return norm.clamp_min(torch.finfo(dtype).tiny ** 0.5)


class Gated(torch.autograd.Function):
    """AdaReLU: (f + |f| sign g) / 2, which is f where the signs of f and g match, else 0; what passes has the gradient 1."""

    @staticmethod
    def forward(f: Tensor, g: Tensor) -> Tensor:
        return torch.copysign(f, g).add_(f).mul_(0.5)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return masked(grad, ctx.saved_tensors[0]), None


class PooledBySign(torch.autograd.Function):
    """AdaPool over windows that tile the map: the maximum where ``sign`` (of each window) is 1, the minimum where it is -1.

    One pooling: the minimum is that of the maximum with the window's sign turned. Held for the gradient are the positions.
    """

    @staticmethod
    def forward(x: Tensor, sign: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, Tensor]:
        turned = x.clone()  # in the memory format of x
        windows = turned.unflatten(-1, (-1, kernel[1])).unflatten(-3, (-1, kernel[0]))
        windows.mul_(sign[..., :, None, :, None])
        top, at = F.max_pool2d(turned, kernel, kernel, return_indices=True)
        return top * sign, at

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, tuple[int, int]], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.kernel, ctx.size = inputs[2], inputs[0].shape

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (at,) = ctx.saved_tensors
        return F.max_unpool2d(g, at, ctx.kernel, ctx.kernel, output_size=list(ctx.size)), None, None


class Masked(torch.autograd.Function):
    """``x`` where ``keep`` is not 0, else 0: in one pass over memory, where a product with a boolean mask takes three.

    ``keep`` is held for the gradient as it is given: bits that are given take a quarter of a map of floats.
    """

    @staticmethod
    def forward(x: Tensor, keep: Tensor) -> Tensor:
        return torch.ops.aten.hardshrink_backward(x, keep.to(x.dtype), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return masked(grad, ctx.saved_tensors[0]), None


def masked(x: Tensor, keep: Tensor) -> Tensor:
    """See Masked."""
    return Masked.apply(x, keep)  # type: ignore[no-any-return]
