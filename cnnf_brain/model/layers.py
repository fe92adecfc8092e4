"""Every supported layer: its forward step, its feedback step (the exact adjoint with the gates held).

Notation (Huang et al. 2020): f is the input of a gate (the pre-activation), z the gate's latent variables, g the feedback
map at a layer's output. A gate compares the sign of f with the sign of g *before* g is masked by z; every other layer is
affine, and its feedback is its transpose without the bias. A layer keeps nothing between calls.

Gates read the sign bit of g, and g = 0 counts as positive: feedback maps hold no negative zeros. Sums (convolutions,
matrix products) make none; where a zero is multiplied, 0.0 is added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnf_brain.model.autograd import Convolved, Dense, Gated, Matched, Normalised, Pooled, Spread, Windows, masked, unpooled

FEW = 4  # channels of a map that counts as an image


class FeatureNorm(nn.Module):
    """The paper's instance normalisation (Appendix A.4): a map divided by its size, per image, then a bias per channel.

    Input and output: (B, C, H, W) or (B, C). The mean is not subtracted.

    Parameters
    ----------
    channels
        C; the bias starts at 0.
    kind
        ``"l2"`` divides by the L2 norm over (C, H, W), as printed; ``"rms"`` by the root mean square. The two differ by the
        constant sqrt(CHW), with which the bias does not dominate the normalised map.

    Raises
    ------
    ValueError
        Another kind.

    Examples
    --------
    >>> import torch
    >>> FeatureNorm(2)(torch.tensor([[3.0, 4.0]])).square().mean().item()
    1.0
    """

    def __init__(self, channels: int, kind: str = "rms") -> None:
        super().__init__()
        if kind not in ("l2", "rms"):
            raise ValueError(f"FeatureNorm kind is {kind!r}, expected 'l2' or 'rms'")
        self.kind = kind
        self.bias = nn.Parameter(torch.zeros(channels))

    def size(self, x: Tensor) -> Tensor:
        """The size by which ``x`` is divided, (B, 1, ...)."""
        norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)
        if self.kind == "rms":
            norm = norm / (x.numel() / x.shape[0]) ** 0.5
        return norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.view(-1, *[1] * (x.dim() - 2)).to(x.dtype)  # under autocast maps stay as small as they come
        n = x[0].numel() if self.kind == "rms" else 1
        return Normalised.apply(x, bias, 1 / self.size(x.detach()), n)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, kind={self.kind!r}"


class FeedbackLayer:
    """A layer with its path in the network. Affine layers override ``forward`` and ``feedback`` without latents."""

    is_gate = False
    # a convolution or matrix: its output f(l) has the norm of Assumption A.6, and is no view of another map
    has_weights = False

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, Tensor | None]:
        """(output, latents). ``guide`` is what the last iteration says here: g for a gate, for dropout its mask.

        ``spare``: nobody else needs ``x`` and ``guide``, which may be overwritten (saves page faults on large maps).
        """
        return self.module(x), None

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        """The feedback map at the layer's input, of shape ``below``.

        ``unmasked`` is the map at the output of the gate straight above, None where no gate is.
        """
        raise NotImplementedError

    def bits(self, z: Tensor) -> Tensor:
        """The latent variables of the model from what ``forward`` returned as latents."""
        return z

    def bias(self, below: Tensor, z: Tensor | None) -> Tensor:
        """The bias seen at the layer's output when ``below`` is the bias at its input (both (1, ...))."""
        return self.forward(below, z)[0]


def fit(x: Tensor, below: torch.Size, left: tuple[int, int]) -> Tensor:
    """Cut (or fill with zeros) the last two axes of ``x`` to ``below``, ``left`` rows and columns dropped in front."""
    top, side = left
    height, width = below[-2:]
    x = x[..., top : top + height, side : side + width]
    return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of an argument that may be one number."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class Conv(FeedbackLayer):
    """Convolution; feedback: the transposed convolution with the same weights."""

    has_weights = True
    module: nn.Conv2d

    def __init__(self, name: str, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros":
            raise ValueError(f"{name}: Conv2d with padding_mode={module.padding_mode!r}; only 'zeros' has a feedback rule")
        super().__init__(name, module)

    def of_images(self, x: Tensor) -> bool:
        """Whether ``Convolved`` and ``Spread`` do: few channels, stride 1, on a CPU, not compiled (which makes one loop of
        each shifted sum, each within the next)."""
        m = self.module
        plain = m.stride == m.dilation == (1, 1) and m.groups == 1 and not isinstance(m.padding, str)
        return plain and m.in_channels <= FEW and x.device.type == "cpu" and not torch.compiler.is_compiling()

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, None]:
        m = self.module
        if x.requires_grad and self.of_images(x):
            return Convolved.apply(x, m.weight, m.bias, m.padding), None
        return F.conv2d(x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups), None

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        m = self.module
        if self.of_images(g):
            return Spread.apply(g, m.weight, m.padding)  # type: ignore[no-any-return]
        reach = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        if m.padding == "same":  # torch pads the odd row or column behind
            full = F.conv_transpose2d(g, m.weight, None, 1, 0, 0, m.groups, m.dilation)
            return fit(full, below, (reach[0] // 2, reach[1] // 2))
        padding = (0, 0) if isinstance(m.padding, str) else pair(m.padding)
        # rows and columns at the far edge that no window reached: (H + 2p - d(k-1) - 1) mod s
        extra = [(size + 2 * p - r - 1) % s for size, p, r, s in zip(below[-2:], padding, reach, m.stride, strict=True)]
        return F.conv_transpose2d(g, m.weight, None, m.stride, padding, extra, m.groups, m.dilation)


class Linear(FeedbackLayer):
    """Fully connected; feedback: the transposed matrix."""

    has_weights = True
    module: nn.Linear

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, None]:
        return Dense.apply(x, self.module.weight, self.module.bias), None

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        return g @ self.module.weight


class ReLU(FeedbackLayer):
    """ReLU at iteration 0, then AdaReLU, gated by the sign of g.

    signed (makes Lemma A.1 exact): g >= 0: max(f, 0); g < 0: min(f, 0), so that the output is z f.
    printed (eq. 3): g < 0: max(-f, 0). In both z = 1 where the signs of f and g match (at g = 0: where f > 0).
    The latents are the output itself: z = 1 where it is not 0.
    """

    is_gate = True

    def __init__(self, name: str, module: nn.Module, printed: bool) -> None:
        super().__init__(name, module)
        self.printed = printed

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, Tensor]:
        if guide is None:
            out: Tensor = x.relu_() if spare else x.relu()
            return out, out.detach()
        g = guide.to(x.dtype)
        out = Gated.apply(x, g) if x.requires_grad else torch.copysign(x, g, out=g if spare else None).lerp_(x, 0.5)
        out = out.abs() if self.printed else out
        return out, out.detach()

    def matched(self, f: Tensor, guide: Tensor | None, wish: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``forward`` of ``f`` scaled to the norm ``wish`` (None: as it is), and the norm of ``f``; see ``Matched``."""
        out, norm = Matched.apply(f, wish, True, None if guide is None else guide.to(f.dtype))
        out = out.abs() if self.printed and guide is not None else out
        return out, out.detach(), norm

    def bits(self, z: Tensor) -> Tensor:
        return z != 0

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        assert z is not None
        return masked(g, z)


class MaxPool(FeedbackLayer):
    """Max pooling at iteration 0, then AdaPool: the maximum of a window where g >= 0, its minimum where g < 0.

    z is the flat position (row-major in the input map) of the chosen element, ties going to the first; feedback adds g
    there, so that overlapping windows add up.
    """

    is_gate = True
    module: nn.MaxPool2d

    def __init__(self, name: str, module: nn.MaxPool2d) -> None:
        if module.return_indices:
            raise ValueError(f"{name}: MaxPool2d with return_indices=True gives two outputs; build it without")
        super().__init__(name, module)
        kernel, padding, self.dilation = pair(module.kernel_size), pair(module.padding), pair(module.dilation)
        stride = kernel if module.stride is None else pair(module.stride)
        self.windows = Windows(kernel, stride, padding, module.ceil_mode)
        # whether windows share no element
        self.apart = self.dilation == (1, 1) and all(k <= s for k, s in zip(kernel, stride, strict=True))

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kernel, stride, padding, ceil_mode = self.windows
        return F.max_pool2d(x, kernel, stride, padding, self.dilation, ceil_mode, return_indices=True)

    def tiles(self, x: Tensor) -> bool:
        """Whether the windows cover each element of ``x`` exactly once."""
        whole = all(size % k == 0 for size, k in zip(x.shape[-2:], self.windows.kernel, strict=True))
        return whole and self.apart and self.windows.kernel == self.windows.stride and self.windows.padding == (0, 0)

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, Tensor]:
        if guide is None:
            return Pooled.apply(x, None, self.windows) if x.requires_grad and self.apart else self.pool(x)
        sign = torch.copysign(x.new_ones(()), guide.to(x.dtype))
        if self.tiles(x):
            return Pooled.apply(x, sign, self.windows)  # type: ignore[no-any-return]
        (top, at_top), (low, at_low) = self.pool(x), self.pool(-x)
        return torch.where(sign > 0, top, -low), torch.where(sign > 0, at_top, at_low)

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        assert z is not None
        if self.apart:  # a plain copy
            return unpooled(g, z, self.windows, below[-2:])
        flat = g.new_zeros(*g.shape[:-2], below[-2] * below[-1])
        return flat.scatter_add(-1, z.flatten(-2), g.flatten(-2)).view(*g.shape[:-2], *below[-2:])


class AvgPool(FeedbackLayer):
    """Average pooling; feedback: every value divided by its window's divisor and spread over the window."""

    module: nn.AvgPool2d

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        m = self.module
        kernel, padding = pair(m.kernel_size), pair(m.padding)
        stride = kernel if m.stride is None else pair(m.stride)
        ones = g.new_ones(1, 1, *below[-2:])
        window_sums = F.avg_pool2d(ones, kernel, stride, padding, m.ceil_mode, True, divisor_override=1)
        divisor = window_sums / self.module(ones)
        spread = F.conv_transpose2d((g / divisor).flatten(0, 1).unsqueeze(1), g.new_ones(1, 1, *kernel), stride=stride)
        return fit(spread, below, padding).view(*g.shape[:2], *below[-2:])


def averaging(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size) matrix of adaptive average pooling along one axis: bin i averages floor(iS/b) .. ceil((i+1)S/b)."""
    i, column = torch.arange(bins, device=like.device), torch.arange(size, device=like.device)
    start, end = i * size // bins, -(-(i + 1) * size // bins)
    inside = (column >= start[:, None]) & (column < end[:, None])
    return inside.to(like.dtype) / (end - start)[:, None].to(like.dtype)


class AdaptiveAvgPool(FeedbackLayer):
    """Adaptive average pooling, P_h x P_wᵀ; feedback: P_hᵀ g P_w."""

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        if g.shape[-2:] == below[-2:]:
            return g
        rows, columns = averaging(below[-2], g.shape[-2], g), averaging(below[-1], g.shape[-1], g)
        return rows.t() @ g @ columns


class Flatten(FeedbackLayer):
    """Flatten; feedback: the shape restored."""

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        return g.reshape(below)


class Dropout(FeedbackLayer):
    """Dropout; in training a mask is drawn in the first pass and held over all iterations and both directions."""

    module: nn.Dropout

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, Tensor | None]:
        if not self.module.training or self.module.p == 0:
            return x, None
        mask = F.dropout(torch.ones_like(x), self.module.p) if guide is None else guide
        return x * mask, mask

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        return g if z is None else g * z + 0.0


class BatchNorm(FeedbackLayer):
    """Batch normalisation in evaluation mode: an affine map per channel; feedback: times gamma / sqrt(var + eps)."""

    module: nn.BatchNorm2d

    def __init__(self, name: str, module: nn.BatchNorm2d) -> None:
        if module.running_var is None:
            raise ValueError(f"{name}: BatchNorm2d without running statistics is no affine map; feedback needs them")
        super().__init__(name, module)

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, None]:
        if self.module.training:
            raise ValueError(
                f"{self.name}: BatchNorm2d is in training mode, where it is no affine map of one image; "
                "call .eval() on it (its statistics are then held) before a pass through CNNF"
            )
        return self.module(x), None

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        m = self.module
        assert m.running_var is not None
        scale = torch.rsqrt(m.running_var + m.eps)
        scale = scale if m.weight is None else scale * m.weight
        return g * scale.view(-1, 1, 1) + 0.0


class Norm(FeedbackLayer):
    """The paper's normalisation (A.4); feedback: divided by the size of the feedback map at the gate above,
    taken before that gate masks it."""

    module: FeatureNorm

    def feedback(self, g: Tensor, below: torch.Size, z: Tensor | None, unmasked: Tensor | None) -> Tensor:
        return g * self.module.size(g if unmasked is None else unmasked).reciprocal()

    def bias(self, below: Tensor, z: Tensor | None) -> Tensor:
        if below.count_nonzero():
            raise ValueError(f"{self.name}: a bias below the normalisation has no fixed size above it (A.4 has none there)")
        return below + self.module.bias.view(-1, *[1] * (below.dim() - 2))


FEEDBACK_LAYERS: dict[type[nn.Module], type[FeedbackLayer]] = {
    nn.Conv2d: Conv,
    nn.Linear: Linear,
    nn.ReLU: ReLU,
    nn.MaxPool2d: MaxPool,
    nn.AvgPool2d: AvgPool,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool,
    nn.Flatten: Flatten,
    nn.Dropout: Dropout,
    nn.BatchNorm2d: BatchNorm,
    FeatureNorm: Norm,
}


def plan(network: nn.Module, *, printed: bool = False, prefix: str = "") -> list[FeedbackLayer]:
    """The layers of a (nested) Sequential in order; a ValueError names a layer without feedback rule and the supported kinds."""
    found: list[FeedbackLayer] = []
    for name, child in network._modules.items():  # one layer may stand at several places (a ReLU, say)
        path = prefix + name
        if type(child) is nn.Sequential:
            found += plan(child, printed=printed, prefix=path + ".")
        elif type(child) is nn.ReLU:
            found.append(ReLU(path, child, printed))
        elif child is not None and type(child) in FEEDBACK_LAYERS:  # the very types: a subclass may compute something else
            found.append(FEEDBACK_LAYERS[type(child)](path, child))
        else:
            kind, supported = type(child).__name__, ", ".join(kind.__name__ for kind in FEEDBACK_LAYERS)
            raise ValueError(
                f"layer {path!r} is a {kind}, which has no feedback rule; supported: {supported}, and nn.Sequential of these"
            )
    return found
