"""CNN-F written out literally: affine layers as dense matrices filled entry by entry, gates by loops over their units.

Slow, NumPy, float64, one image at a time. Shares no code with ``cnnf_brain.model``; pooling and convolution follow their
definitions, never a library call. Notation as in the paper: f input of a gate, z its latents, g feedback maps, y top, v logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn


@dataclass
class Affine:
    """out = matrix @ x + bias, on flattened maps."""

    matrix: npt.NDArray[Any]
    bias: npt.NDArray[Any]


@dataclass
class Rectifier:
    """ReLU, then AdaReLU."""


@dataclass
class Pool:
    """Max pooling, then AdaPool: for every output the flat input positions of its window, row-major."""

    windows: list[list[int]]
    plane: int  # positions are reported within their channel, as rows * width + column


@dataclass
class Normalise:
    """x / size(x) + bias, with the size over the whole map."""

    kind: str
    bias: npt.NDArray[Any]

    def size(self, x: npt.NDArray[Any]) -> float:
        total = math.sqrt(sum(float(value) ** 2 for value in x))
        return total if self.kind == "l2" else total / math.sqrt(len(x))


@dataclass
class Step:
    """One iteration. ``f``, ``z``: by number of the gate; ``g[i]``: the map at the output of layer i; ``generated`` g(k)."""

    h: npt.NDArray[Any]
    v: npt.NDArray[Any]
    f: dict[int, npt.NDArray[Any]]
    z: dict[int, npt.NDArray[Any]]
    a: dict[int, npt.NDArray[Any]]  # the output of every layer
    g: dict[int, npt.NDArray[Any]] = field(default_factory=dict)
    generated: npt.NDArray[Any] | None = None
    reconstruction: npt.NDArray[Any] | None = None


def pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value)


def conv_matrix(weight: Any, bias: Any, shape: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """``padding``: ((top, bottom), (left, right))."""
    channels, height, width = shape
    out_channels, per_group, kh, kw = weight.shape
    rows = (height + sum(padding[0]) - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + sum(padding[1]) - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    matrix = np.zeros((out_channels * rows * columns, channels * height * width))
    for o, r, c, i, u, w in product(
        range(out_channels), range(rows), range(columns), range(per_group), range(kh), range(kw)
    ):
        y = r * stride[0] + u * dilation[0] - padding[0][0]
        x = c * stride[1] + w * dilation[1] - padding[1][0]
        if 0 <= y < height and 0 <= x < width:
            channel = (o // (out_channels // groups)) * per_group + i
            matrix[(o * rows + r) * columns + c, (channel * height + y) * width + x] += weight[o, i, u, w]
    return matrix, np.repeat(bias, rows * columns), (out_channels, rows, columns)


def pooled_length(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Any:
    """Windows along one axis; in ceil mode a last one counts if it starts inside the map or its left padding."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    length = (math.ceil(span / stride) if ceil_mode else math.floor(span / stride)) + 1
    return length - 1 if ceil_mode and (length - 1) * stride >= size + padding else length


def max_windows(module: Any, shape: Any) -> Any:
    """Flat positions of every window of a MaxPool2d, row-major, and the output's shape."""
    channels, height, width = shape
    (kh, kw), (ph, pw), (dh, dw) = pair(module.kernel_size), pair(module.padding), pair(module.dilation)
    sh, sw = pair(module.stride or module.kernel_size)
    rows = pooled_length(height, kh, sh, ph, dh, module.ceil_mode)
    columns = pooled_length(width, kw, sw, pw, dw, module.ceil_mode)
    windows = []
    for channel, r, c in product(range(channels), range(rows), range(columns)):
        cells = [(r * sh + u * dh - ph, c * sw + w * dw - pw) for u in range(kh) for w in range(kw)]
        windows.append([(channel * height + y) * width + x for y, x in cells if 0 <= y < height and 0 <= x < width])
    return windows, (channels, rows, columns)


def avg_matrix(module: Any, shape: Any) -> Any:
    channels, height, width = shape
    (kh, kw), (ph, pw) = pair(module.kernel_size), pair(module.padding)
    sh, sw = pair(module.stride or module.kernel_size)
    rows = pooled_length(height, kh, sh, ph, 1, module.ceil_mode)
    columns = pooled_length(width, kw, sw, pw, 1, module.ceil_mode)
    matrix = np.zeros((channels * rows * columns, channels * height * width))
    for channel, r, c in product(range(channels), range(rows), range(columns)):
        padded = [(r * sh + u, c * sw + w) for u in range(kh) for w in range(kw)]
        padded = [(y, x) for y, x in padded if y < height + 2 * ph and x < width + 2 * pw]  # ceil mode may reach beyond
        inside = [(y - ph, x - pw) for y, x in padded if ph <= y < ph + height and pw <= x < pw + width]
        divisor = module.divisor_override or len(padded if module.count_include_pad else inside)
        for y, x in inside:
            matrix[(channel * rows + r) * columns + c, (channel * height + y) * width + x] = 1 / divisor
    return matrix, (channels, rows, columns)


def adaptive_matrix(module: Any, shape: Any) -> Any:
    channels, height, width = shape
    wish = pair(module.output_size)
    rows, columns = wish[0] or height, wish[1] or width
    matrix = np.zeros((channels * rows * columns, channels * height * width))
    for channel, r, c in product(range(channels), range(rows), range(columns)):
        ys = range(math.floor(r * height / rows), math.ceil((r + 1) * height / rows))
        xs = range(math.floor(c * width / columns), math.ceil((c + 1) * width / columns))
        for y, x in product(ys, xs):
            row = (channel * rows + r) * columns + c
            matrix[row, (channel * height + y) * width + x] = 1 / (len(ys) * len(xs))
    return matrix, (channels, rows, columns)


def array(tensor: Any, like: int = 0) -> npt.NDArray[Any]:
    """A float64 array of a tensor, zeros (``like`` of them) for None."""
    return np.zeros(like) if tensor is None else tensor.detach().double().cpu().numpy().copy()


def leaves(network: Any, prefix: str = "") -> Iterator[Any]:
    for name, child in network._modules.items():
        if isinstance(child, nn.Sequential):
            yield from leaves(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


AVERAGES = {nn.AvgPool2d: avg_matrix, nn.AdaptiveAvgPool2d: adaptive_matrix}


def sides(module: Any) -> Any:
    """The padding of a convolution: ((top, bottom), (left, right))."""
    if module.padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(r // 2, r - r // 2) for r in reach]
    return [(0, 0)] * 2 if module.padding == "valid" else [(p, p) for p in module.padding]


def scaling(module: Any, shape: Any) -> Affine:
    """Batch normalisation in evaluation mode: a gain and an offset for each channel."""
    gain = np.ones(shape[0]) if module.weight is None else array(module.weight)
    scale = gain / np.sqrt(array(module.running_var) + module.eps)
    offset = array(module.bias, shape[0]) - array(module.running_mean) * scale
    plane = shape[1] * shape[2]
    return Affine(np.diag(np.repeat(scale, plane)), np.repeat(offset, plane))


def literal(network: Any, shape: Any, masks: Any = None) -> Any:
    """The layers of an nn.Sequential for one image of ``shape`` (C, H, W), in order, with their paths.

    ``masks``: by path, the flattened mask of dropout in training.
    """
    layers = {}
    for path, m in leaves(network):
        n = math.prod(shape)
        if isinstance(m, nn.Conv2d):
            bias, padding = array(m.bias, m.out_channels), sides(m)
            matrix, bias, shape = conv_matrix(array(m.weight), bias, shape, m.stride, padding, m.dilation, m.groups)
            layers[path] = Affine(matrix, bias)
        elif isinstance(m, nn.Linear):
            layers[path] = Affine(array(m.weight), array(m.bias, m.out_features))
            shape = (m.out_features,)
        elif isinstance(m, nn.ReLU):
            layers[path] = Rectifier()  # type: ignore[assignment]
        elif isinstance(m, nn.MaxPool2d):
            plane = shape[1] * shape[2]
            windows, shape = max_windows(m, shape)
            layers[path] = Pool(windows, plane)  # type: ignore[assignment]
        elif type(m) in AVERAGES:
            matrix, shape = AVERAGES[type(m)](m, shape)
            layers[path] = Affine(matrix, np.zeros(len(matrix)))
        elif isinstance(m, nn.BatchNorm2d):
            layers[path] = scaling(m, shape)
        elif isinstance(m, nn.Dropout | nn.Flatten):
            layers[path] = Affine(np.diag((masks or {}).get(path, np.ones(n))), np.zeros(n))
            shape = (n,) if isinstance(m, nn.Flatten) else shape
        elif type(m).__name__ == "FeatureNorm":
            layers[path] = Normalise(m.kind, np.repeat(array(m.bias), math.prod(shape[1:])))  # type: ignore[assignment]
        else:
            raise TypeError(f"{path}: no literal form of {type(m).__name__}")
    return layers


def feedforward(layers: Any, h: Any, guides: Any = None, z: Any = None, printed: bool = False, norms: Any = None) -> Any:
    """One pass from h. ``guides``: g at every gate's output, before masking (None: ReLU and MaxPool); or given ``z``.

    ``norms``: layer -> the norm that its output is scaled to, None where it is to be noted.
    """
    step = Step(h, h, {}, {}, {})
    x = h
    for i, layer in enumerate(layers):
        if isinstance(layer, Affine):
            x = layer.matrix @ x + layer.bias
            if norms is not None and i in norms:
                norm = np.sqrt(np.sum(x**2))
                norms[i] = norm if norms[i] is None else norms[i]
                x = x * norms[i] / norm
        elif isinstance(layer, Normalise):
            x = x / layer.size(x) + layer.bias
        else:
            step.f[i] = x
            g = None if guides is None else guides[i]
            step.z[i] = z[i] if z is not None else (relu_bits if isinstance(layer, Rectifier) else routes)(layer, x, g)
            if isinstance(layer, Rectifier):
                x = x * step.z[i]
                x = np.abs(x) if printed else x
            else:
                x = np.array([x[at] for at in step.z[i]])
        step.a[i] = x
    step.v = x
    return step


def relu_bits(layer: Any, f: Any, g: Any) -> Any:
    """z = 1 where g >= 0 and f > 0, or g < 0 and f < 0."""
    return np.array([float(f[j] > 0 if g is None or g[j] >= 0 else f[j] < 0) for j in range(len(f))])


def routes(layer: Any, f: Any, g: Any) -> Any:
    """The position chosen in each window: the first largest value where g >= 0, the first smallest where g < 0."""
    chosen = []
    for j, window in enumerate(layer.windows):
        best = window[0]
        for at in window[1:]:
            if f[at] < f[best] if g is not None and g[j] < 0 else f[at] > f[best]:
                best = at
        chosen.append(best)
    return np.array(chosen)


def feedback(layers: Any, step: Any, y: Any) -> Any:
    """The feedback pass from y: (g at the output of every layer, g at the input of the first)."""
    g, maps = y, {}
    for i in range(len(layers) - 1, -1, -1):
        layer, maps[i] = layers[i], g
        if isinstance(layer, Affine):
            g = layer.matrix.T @ g
        elif isinstance(layer, Rectifier):
            g = g * step.z[i]
        elif isinstance(layer, Normalise):
            above = i + 1 < len(layers) and isinstance(layers[i + 1], Rectifier | Pool)
            g = g / layer.size(maps[i + 1] if above else g)
        else:
            spread = np.zeros(len(step.f[i]))
            for j, at in enumerate(step.z[i]):
                spread[at] += g[j]
            g = spread
    return maps, g


def recur(
    layers: Any,
    clean: Any,
    iterations: Any,
    *,
    step: float = 1.0,
    match_norm: bool = False,
    printed: bool = False,
    matched: Any = (),
) -> Any:
    """Algorithm 1 from the target features ``clean`` on: one Step for each iteration.

    ``matched``: the layers whose outputs keep the norm that they have in the first pass.
    """
    h, guides, steps, norms = clean, None, [], dict.fromkeys(matched)
    for _ in range(iterations + 1):
        now = feedforward(layers, h, guides, printed=printed, norms=norms)
        now.g, now.generated = feedback(layers, now, now.v)
        scale = np.sqrt(np.sum(clean**2) / np.sum(now.generated**2)) if match_norm else 1.0
        now.reconstruction = now.generated * scale
        steps.append(now)
        h, guides = h + step * (now.reconstruction - h), now.g
    return steps


def eta(layers: Any, g: Any) -> Any:
    """sum over affine layers of <b, g at their output> (masked by the gates above): eta of Lemma A.1 term by term."""
    return sum(float(layer.bias @ g[i]) for i, layer in enumerate(layers) if isinstance(layer, Affine))


def lemma(layers: Any, step: Any, y: Any) -> Any:
    """The right-hand side of Lemma A.2 in its general form: rho_1...rho_n <g(0), x> + sum of (rhos above) eta(l).

    Without normalisation it is <g(0), x> + eta, Lemma A.1. rho = size of g at the gate above / size of f.
    """
    g, bottom = feedback(layers, step, y)
    total, factor = 0.0, 1.0
    for i in range(len(layers) - 1, -1, -1):
        layer = layers[i]
        if isinstance(layer, Affine | Normalise):
            total += factor * float(layer.bias @ g[i])
        if isinstance(layer, Normalise):
            above = i + 1 < len(layers) and isinstance(layers[i + 1], Rectifier | Pool)
            below = step.a[i - 1] if i else step.h
            factor *= layer.size(g[i + 1] if above else g[i]) / layer.size(below)
    return total + factor * float(bottom @ step.h)
