"""Networks drawn at random from a seed, small enough for the literal oracle, and helpers shared by the tests of the model."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain import CNNF, FeatureNorm
from cnnf_brain.model.cnnf import Kept
from cnnf_brain.model.layers import MaxPool
from cnnf_brain.model.state import State

SAME_KERNELS = (1, 2, 3, (2, 3))


def draw_conv(r: random.Random, channels: int) -> nn.Conv2d:
    """Stride, padding, dilation, groups, 'same' and 'valid', kernels that are not square."""
    groups = r.choice([g for g in (1, 1, 2, 3) if channels % g == 0])
    out = groups * r.choice([1, 2])
    bias = r.random() < 0.8
    if r.random() < 0.25:
        kernel, dilation = r.choice(SAME_KERNELS), r.choice([1, 2])
        return nn.Conv2d(channels, out, kernel, padding="same", dilation=dilation, groups=groups, bias=bias)
    kernel = (r.choice([1, 2, 3]), r.choice([1, 2, 3]))
    padding = r.choice(["valid", 0, 1, 2, (0, 1), (2, 0)])
    stride, dilation = (r.choice([1, 1, 2, 3]), r.choice([1, 1, 2])), r.choice([1, 1, 2])
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]


def draw_max_pool(r: random.Random) -> nn.MaxPool2d:
    """Overlapping, apart and with gaps; padding, dilation, ceil mode."""
    kernel = r.choice([2, 3, (2, 3)])
    stride = r.choice([None, 1, 2, 3, (1, 2)])
    return nn.MaxPool2d(kernel, stride, r.choice([0, 1]), r.choice([1, 1, 2]), ceil_mode=r.random() < 0.5)  # type: ignore[arg-type]


def draw_average(r: random.Random) -> nn.Module:
    """Average pooling in all its forms, or adaptive."""
    if r.random() < 0.4:
        return nn.AdaptiveAvgPool2d(r.choice([1, 2, 3, (3, 2), (None, 2)]))  # type: ignore[arg-type]
    return nn.AvgPool2d(
        r.choice([2, 3, (3, 2)]),  # type: ignore[arg-type]
        r.choice([None, 1, 2, 3]),
        r.choice([0, 1]),
        r.random() < 0.5,
        r.random() < 0.5,
        r.choice([None, None, 5]),
    )


def draw_batch_norm(r: random.Random, channels: int) -> nn.BatchNorm2d:
    """In evaluation mode, with statistics as if it had been trained."""
    layer = nn.BatchNorm2d(channels, affine=r.random() < 0.7)
    layer.running_mean = torch.randn(channels)
    layer.running_var = torch.rand(channels) + 0.5
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer.eval()


class Builder:
    """Layers one upon the other, with the map that they make of a random image."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.x, self.layers = torch.rand(1, *shape), []  # type: ignore[var-annotated]

    @property
    def channels(self) -> int:
        return self.x.shape[1]

    def add(self, layer: nn.Module) -> bool:
        """Whether the layer fits; one that does not is left out."""
        try:
            y = layer(self.x)
        except (RuntimeError, ValueError):  # the map is too small for this layer
            return False
        more = isinstance(layer, nn.AdaptiveAvgPool2d) and y.numel() > self.x.numel()  # bins than cells: equal cells, ties
        if y.numel() == 0 or not y.isfinite().all() or more:
            return False
        self.x = y
        self.layers.append(layer)
        return True


def draw_block(r: random.Random, build: Builder, normalised: bool) -> None:
    """A convolution and what follows it."""
    conv = draw_conv(r, build.channels)
    if normalised:
        conv.bias = None
    if build.add(conv):
        if normalised:
            build.add(FeatureNorm(build.channels, r.choice(["rms", "l2"])))
        elif r.random() < 0.4:
            build.add(draw_batch_norm(r, build.channels))
    if r.random() < 0.8:
        build.add(nn.ReLU(inplace=r.random() < 0.5))
    if r.random() < 0.3:
        build.add(nn.Dropout(0.4))
    if r.random() < 0.6:
        build.add(draw_max_pool(r))
    if r.random() < 0.3 and not normalised:
        build.add(draw_average(r))


def draw_network(seed: int, *, normalised: bool = False) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A float64 network with nested Sequentials, in training mode but for batch normalisation, and its image shape.

    ``normalised``: FeatureNorm (without biases below it) in place of batch normalisation.
    """
    r = random.Random(seed)
    torch.manual_seed(seed)
    shape = (r.choice([1, 2, 3]), r.randint(6, 9), r.randint(6, 9))
    build = Builder(shape)
    for _ in range(r.choice([1, 2, 2, 3])):
        draw_block(r, build, normalised)
    build.add(nn.Flatten())
    if r.random() < 0.6:
        for layer in (nn.Linear(build.channels, 12, bias=r.random() < 0.8), nn.ReLU(), nn.Dropout(0.3)):
            build.add(layer)
    build.add(nn.Linear(build.channels, 3, bias=r.random() < 0.8))
    cut = r.randint(1, len(build.layers))
    network = nn.Sequential(nn.Sequential(*build.layers[:cut]), *build.layers[cut:]).double()
    for module in network.modules():  # biases large enough to be seen in a sum over the whole net
        if isinstance(module, nn.Conv2d | nn.Linear | FeatureNorm) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
    return network, shape


def draw_model(seed: int, *, normalised: bool = False, **settings: Any) -> tuple[CNNF, Tensor]:
    """A model with settings drawn too (those given stand), and a batch of two images.

    Nets in which no feedback reaches the target of some image (all units of a layer off) are drawn again.
    """
    for attempt in range(seed, seed + 100_000, 1000):
        network, shape = draw_network(attempt, normalised=normalised)
        r = random.Random(attempt)
        names = [name for name, module in network.named_modules() if name and not isinstance(module, nn.Sequential)]
        lowest = next(i for i, name in enumerate(names) if isinstance(network.get_submodule(name), nn.Linear))
        drawn = {
            "iterations": r.choice([1, 2, 3]),
            "target": r.choice(["input", "input", r.choice(names[:lowest])]),
            "step": r.choice([1.0, 1.0, 0.3]),
            "match_norm": r.random() < 0.6,
        }
        model = CNNF(network, **{**drawn, **settings})
        x = torch.randn(2, *shape, dtype=torch.float64)
        torch.manual_seed(attempt)  # the masks of dropout are then those of the caller's first call
        with torch.no_grad():
            made = torch.stack([state.generated for state in model.unroll(x, iterations=3, return_states=True).states])  # type: ignore[misc]
        torch.manual_seed(attempt)
        if bool((made.abs().flatten(2).amax(2) > 1e-3).all()):
            return model, x
    raise AssertionError("no network that passes feedback down was drawn")


def masks_of(model: CNNF, state: State, image: int) -> dict[str, Any]:
    """By path, the flattened dropout mask that one image got."""
    return {
        model.feedback_layers[i].name: z[image].flatten().numpy()
        for i, z in state.latents.items()
        if isinstance(model.feedback_layers[i].module, nn.Dropout)
    }


def generated_from(model: CNNF, state: State, y: Tensor) -> State:
    """The state with another top y, and the feedback maps (of every gate) that it generates with the same z."""
    other = replace(state, output=y, guides={}, feedback={}, generated=None)
    model.generate(other, state.target, Kept(gates=True))
    return other


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> image by image, (B,)."""
    return (a * b).flatten(1).sum(1)


def literal_latents(model: CNNF, state: State, image: int) -> dict[int, Any]:
    """z of one image as the oracle has it: numbered from the target, pooling positions counted over the whole map."""
    found = {}
    for i in (i for i, layer in enumerate(model.feedback_layers) if layer.is_gate and i in state.latents):
        z = model.feedback_layers[i].bits(state.latents[i])[image]
        if isinstance(model.feedback_layers[i], MaxPool):
            plane = state.inputs[i][-2] * state.inputs[i][-1]
            z = z + torch.arange(len(z)).view(-1, 1, 1) * plane
        found[i - model.start] = z.flatten().numpy()
    return found
