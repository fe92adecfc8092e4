"""Maps with gradients written by hand, and signs in bits. Both save memory; the gradients also save passes over it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def layout(x: Tensor) -> torch.memory_format:
    """How a map lies in memory: channels_last or contiguous."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class Windows(NamedTuple):
    """The windows of a pooling layer, (height, width) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool


class Convolved(torch.autograd.Function):
    """A convolution of stride 1 over a map of few channels (an image); its gradient to the map is ``Spread``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, 1, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x, weight), (for_x, for_weight, for_bias, _) = ctx.saved_tensors, ctx.needs_input_grad
        to_x = Spread.apply(g, weight, ctx.padding) if for_x else None
        to_weight = to_kernel(g, x, weight, ctx.padding) if for_weight else None
        return to_x, to_weight, g.sum((0, 2, 3)) if for_bias else None, None


class Spread(torch.autograd.Function):
    """The transposed convolution of stride 1 down to few channels: a matrix product, then one shifted sum for each element of
    the kernel. On CPUs faster than ``conv_transpose2d``, which is made for many channels."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.padding = padding
        (n, out, height, width), (_, channels, *kernel) = g.shape, weight.shape
        flat = weight.to(g.dtype).reshape(out, -1).t()
        if layout(g) == torch.channels_last:
            parts = (flat @ g.permute(0, 2, 3, 1).reshape(-1, out).t()).view(channels, *kernel, n, height, width)
        else:
            parts = (flat @ g.flatten(2)).view(n, channels, *kernel, height, width).permute(1, 2, 3, 0, 4, 5)
        dtype = torch.promote_types(parts.dtype, torch.float32)  # of the sum
        whole = parts.new_zeros(channels, n, height + kernel[0] - 1, width + kernel[1] - 1, dtype=dtype)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                whole[..., i : i + height, j : j + width] += parts[:, i, j]
        (top, side), (rows, columns) = padding, whole.shape[-2:]
        inside = whole[..., top : rows - top, side : columns - side]
        return inside.transpose(0, 1).to(parts.dtype).contiguous(memory_format=layout(g))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g, weight), (for_g, for_weight, _) = ctx.saved_tensors, ctx.needs_input_grad
        to_g = Convolved.apply(grad, weight.to(grad.dtype), None, ctx.padding) if for_g else None
        return to_g, to_kernel(g, grad, weight, ctx.padding) if for_weight else None, None


def to_kernel(g: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """The gradient to the kernel of a convolution of ``x`` (stride 1); ``g`` is the gradient to its output."""
    made: Tensor = torch.ops.aten.convolution_backward(
        g, x.to(g.dtype), weight.to(g.dtype), None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
    return made.to(weight.dtype)


class Dense(torch.autograd.Function):
    """F.linear whose gradient to the matrix is no view, as PyTorch's is: those of several passes are added up in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = g.reshape(-1, g.shape[-1])
        to_x = (g @ weight.to(g.dtype)).to(x.dtype) if for_x else None
        to_weight = (rows.t() @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(weight.dtype) if for_weight else None
        return to_x, to_weight, rows.sum(0) if for_bias else None


class Normalised(torch.autograd.Function):
    """x / size(x) + bias with its gradient in three passes over the map, where autograd takes ten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, inverse: Tensor, n: int) -> Tensor:
        """``inverse`` (B, 1, ...) is 1 / size; size² is the sum of squares over ``n``."""
        ctx.save_for_backward(x, inverse)
        ctx.n, ctx.bias = n, bias.shape
        return torch.addcmul(bias, x, inverse)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, inverse = ctx.saved_tensors
        g = g.contiguous(memory_format=layout(x))
        if torch.is_grad_enabled():  # for gradients of gradients
            square = x.square().sum(tuple(range(1, x.dim())), keepdim=True) / ctx.n
            inverse = square.clamp_min(torch.finfo(x.dtype).tiny).rsqrt()
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            along = inner(g, x) * inverse / ctx.n
            to_x = (g * inverse).addcmul_(x, along * inverse * inverse, value=-1)
        if ctx.needs_input_grad[1]:
            to_bias = g.sum_to_size(ctx.bias)
        return to_x, to_bias, None, None


class Matched(torch.autograd.Function):
    """``f`` scaled image by image to the norm ``wish`` and gated, in one: (output, norm of f), (B, ...) and (B, 1, ...).

    ``wish`` (B, 1, ...), None: not scaled. ``gate``: whether a gate follows (else a wish is needed), ``guide`` what it is given
    (see ``gated``). The gradient makes one map and works on it in place: on a CPU new memory costs more than the sums.
    """

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, wish: Tensor | None, gate: bool = False, guide: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        norm = image_norm(f)
        scale = 1 if wish is None else (wish / norm).to(f.dtype)
        output = gated(f, guide) if gate else f * scale
        if gate and wish is not None:
            output.mul_(scale)
        ctx.save_for_backward(f, output if gate else None, wish, norm)
        return output, norm

    @staticmethod
    def backward(ctx: Any, g: Tensor, along: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (f, output, wish, norm), again = ctx.saved_tensors, torch.is_grad_enabled()
        norm = image_norm(f) if again else norm  # for gradients of gradients
        to_f, to_wish = g if output is None else masked(g, output), None
        if wish is not None:
            to_wish, scale = inner(to_f, f).to(norm.dtype) / norm, (wish / norm).to(f.dtype)
            along = along - to_wish * wish / norm
            to_f = to_f * scale if again or output is None else to_f.mul_(scale)
        return to_f.addcmul_(f, (along / norm).to(f.dtype)), to_wish, None, None


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> image by image, (B, 1, ...); both are read as they lie in memory where they lie alike."""
    shape = (-1, *[1] * (a.dim() - 1))
    if layout(a) == torch.channels_last:
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    a, b = a.flatten(1), b.flatten(1)
    if a.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        product: Tensor = torch.linalg.vecdot(a, b)
        return product.view(shape)
    # image by image: PyTorch writes the product of all that it is given
    return torch.stack([torch.linalg.vecdot(x, y) for x, y in zip(a, b, strict=True)]).view(shape)


def image_norm(x: Tensor) -> Tensor:
    """The L2 norm of each image of ``x`` (B, ...), (B, 1, ...), in float32 or better and never quite zero."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True, dtype=dtype)
    return norm.clamp_min(torch.finfo(dtype).tiny ** 0.5)


def to_norm(x: Tensor, wish: Tensor) -> Tensor:
    """``x`` scaled image by image to the norm ``wish`` (B, 1, ...)."""
    return Matched.apply(x, wish)[0]  # type: ignore[no-any-return]


def matched(x: Tensor, wish: Tensor | None, spare: bool) -> tuple[Tensor, Tensor]:
    """``x`` scaled image by image to the norm ``wish`` (None: as it is), and its norm before; ``spare``: x may be overwritten."""
    norm = image_norm(x)
    if wish is None:
        return x, norm
    return (x.mul_((wish / norm).to(x.dtype)) if spare else to_norm(x, wish)), norm


def gated(f: Tensor, guide: Tensor | None) -> Tensor:
    """ReLU of ``f``; with a ``guide`` AdaReLU: f where the signs of both match, else 0."""
    return f.relu() if guide is None else torch.copysign(f, guide).lerp_(f, 0.5)


class Gated(torch.autograd.Function):
    """AdaReLU (see ``gated``); what passes has the gradient 1."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, guide: Tensor) -> Tensor:
        output = gated(f, guide)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.saved_tensors[0]), None


class Pooled(torch.autograd.Function):
    """Max pooling over windows that share no element; its gradient lies in memory as the map does, which PyTorch's does not.

    With ``sign`` (of each window; windows then tile the map) it is AdaPool: the maximum where the sign is 1, the minimum where it
    is -1. One pooling does both: the minimum is the maximum of the window with its sign turned.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sign: Tensor | None, windows: Windows) -> tuple[Tensor, Tensor]:
        if sign is not None:
            height, width = windows.kernel
            tiles = torch.unflatten(torch.unflatten(x, -1, (-1, width)), -3, (-1, height))
            x = (tiles * sign[..., :, None, :, None]).flatten(-2).flatten(-3, -2)  # lies in memory as before
        kernel, stride, padding, ceil_mode = windows
        top, at = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode, return_indices=True)
        ctx.mark_non_differentiable(at)
        ctx.save_for_backward(at)
        ctx.windows, ctx.size = windows, x.shape[-2:]
        return top if sign is None else top * sign, at

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor, None, None]:
        return unpooled(g, ctx.saved_tensors[0], ctx.windows, ctx.size), None, None


def unpooled(g: Tensor, at: Tensor, windows: Windows, size: torch.Size) -> Tensor:
    """``g`` (B, C, h, w) put at the flat positions ``at`` of maps (B, C, *size) that are 0 elsewhere, no two at one position.
    The maps lie in memory as ``at`` does."""
    return Unpooled.apply(g, at, windows, size)  # type: ignore[no-any-return]


class Unpooled(torch.autograd.Function):
    """See ``unpooled``; the gradient is read in the order of memory, which PyTorch's is not."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, at: Tensor, windows: Windows, size: torch.Size) -> Tensor:
        ctx.save_for_backward(at)
        return F.max_unpool2d(g.contiguous(memory_format=layout(at)), at, *windows[:3], output_size=list(size))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return chosen(grad, ctx.saved_tensors[0]), None, None, None


def chosen(values: Tensor, at: Tensor) -> Tensor:
    """The elements of maps ``values`` (1 or B, C, H, W) at the flat positions ``at`` (B, C, h, w)."""
    values = values.expand(len(at), -1, -1, -1)
    if layout(at) == torch.contiguous_format:
        return values.flatten(2).gather(2, at.flatten(2)).view_as(at)
    values, rows = values.permute(0, 2, 3, 1).flatten(1, 2), at.permute(0, 2, 3, 1)
    return values.gather(1, rows.flatten(1, 2)).view_as(rows).permute(0, 3, 1, 2)


class Masked(torch.autograd.Function):
    """``x`` where ``keep`` is not 0, else 0: in one pass over memory, where a product with a boolean mask takes three.

    ``keep`` is held for the gradient as it is given: bits that are given take a quarter of a map of floats.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor) -> Any:
        ctx.save_for_backward(keep)
        return torch.ops.aten.hardshrink_backward(x, keep.to(x.dtype), 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return masked(grad, ctx.saved_tensors[0]), None


def masked(x: Tensor, keep: Tensor) -> Tensor:
    """See Masked."""
    return Masked.apply(x, keep)  # type: ignore[no-any-return]


class Bits(NamedTuple):
    """A map of yes and no, in a bit an element."""

    bits: Tensor
    shape: torch.Size
    dtype: torch.dtype
    layout: torch.memory_format


def packed(yes: Tensor, dtype: torch.dtype) -> Bits:
    """The boolean map ``yes`` in bits; ``dtype`` is that of the map that it stands for."""
    padded = F.pad(yes.flatten().to(torch.uint8), (0, -yes.numel() % 8)).view(-1, 8)
    bits = padded << torch.arange(8, dtype=torch.uint8, device=yes.device)
    return Bits(bits.sum(1, dtype=torch.uint8), yes.shape, dtype, layout(yes))


def unpacked(value: Bits) -> Tensor:
    """The boolean map of ``packed``."""
    yes = (value.bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=value.bits.device)) & 1
    return yes.bool().flatten()[: value.shape.numel()].view(value.shape).contiguous(memory_format=value.layout)


class SignsAlone(dict[int, Any]):
    """Feedback maps by layer of which the signs alone are kept, in bits; other values, put in from a mapping, stay as they are."""

    def __setitem__(self, i: int, g: Tensor) -> None:
        super().__setitem__(i, packed(~torch.signbit(g), g.dtype))

    def get(self, i: int, default: Any = None) -> Any:
        """1 and -1 in place of a feedback map, which is all that a pass reads of it."""
        value = super().get(i, default)
        return unpacked(value).to(value.dtype).mul_(2).sub_(1) if isinstance(value, Bits) else value
