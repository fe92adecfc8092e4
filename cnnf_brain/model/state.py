"""The state of an iteration, and what is read off states: self-consistency, eta(y, z) of Lemma A.1, the losses of Table 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnf_brain.checks import unknown
from cnnf_brain.model.autograd import chosen
from cnnf_brain.model.layers import FeedbackLayer, MaxPool
from cnnf_brain.types import LayerAt

if TYPE_CHECKING:
    from cnnf_brain.model.cnnf import CNNF

TERMS = ("cross_entropy", "reconstruction", "latent", "norm")
REDUCTIONS = ("mean", "sum")  # of the reconstruction loss, over the elements of h


@dataclass
class State:
    """One iteration: the feedforward pass from the target on, and the feedback pass generated from its output.

    ``target`` (h_t) enters the layer after the target layer; ``output`` (y_t) is the top output (logits). ``generated`` is g(k),
    ``reconstruction`` the same with its norm matched. The rest is by number of the layer, -1 for the image.

    The pass was given: ``given`` (for a gate g of the iteration before, for dropout its mask; empty in the first pass) and
    ``sizes`` (the norms to which outputs were scaled, ``match_layers``).

    It left: ``inputs`` (shapes), ``maps`` (outputs that were asked for), ``latents`` (z of gates as they hold it, masks of
    dropout), ``gate_inputs`` (f, which the gate compares with g), ``norms`` (of each output f(l) of a convolution or matrix, before
    any normalisation, (B, 1, ...)), ``guides`` (g at gates, its signs set the next pass), ``feedback`` (g at outputs asked for).
    """

    target: Tensor
    output: Tensor
    given: Mapping[int, Tensor] = field(default_factory=dict)
    sizes: Mapping[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, torch.Size] = field(default_factory=dict)
    maps: dict[int, Tensor] = field(default_factory=dict)
    latents: dict[int, Tensor] = field(default_factory=dict)
    gate_inputs: dict[int, Tensor] = field(default_factory=dict)
    norms: dict[int, Tensor] = field(default_factory=dict)
    guides: dict[int, Tensor] = field(default_factory=dict)
    feedback: dict[int, Tensor] = field(default_factory=dict)
    generated: Tensor | None = None
    reconstruction: Tensor | None = None


@dataclass
class Consistency:
    """How far each of y, z, h is from its optimum given the other two (Definition 2.1); 0 is consistent. Each (N+1, B).

    ``h``: ||h_t - g_t(k)|| / ||g_t(k)||, as h* = g(k) (Theorem 2.1.A), norm matched if the network does so.
    ``z``: the share of gates of z_t that are not the MAP given f_t and g_t (Theorem 2.1.C; each pooling window is one gate).
    ``y``: ||y_{t-1} - y_t|| / ||y_t||: y_t is the optimum given h_t and z_t (Theorem 2.1.B), y_{t-1} is what generated h_t.
    At t = 0 nothing was generated yet, and y is 0.
    """

    y: Tensor
    z: Tensor
    h: Tensor

    def worst(self) -> Tensor:
        """The largest of the three residuals."""
        return torch.maximum(torch.maximum(self.y, self.z), self.h)


@dataclass
class FeedbackResult:
    """What ``CNNF.unroll`` returns; N is the number of iterations, B the batch.

    Attributes
    ----------
    logits
        (N+1, B, K): the top output at every iteration (of a headless network its top feature map).
    layers
        The maps (B, ...) that were asked for.
    reconstruction
        (N+1, B, ...): entry t is what feedback generated for iteration t (norm matched, before the step), entry 0 the target
        features h of the first pass.
    consistency
        The three residuals of every iteration, see ``Consistency``.
    states
        One State for each iteration.
    iterations_run
        (B,): where ``tolerance`` is set, the last iteration that each image ran.

    Examples
    --------
    >>> import torch, cnnf_brain
    >>> result = cnnf_brain.small_net(iterations=2).unroll(torch.zeros(3, 1, 28, 28), return_layers=["relu1@1"])
    >>> result.logits.shape, result.layers[cnnf_brain.LayerAt("relu1", 1)].shape
    (torch.Size([3, 3, 10]), torch.Size([3, 32, 26, 26]))
    """

    logits: Tensor
    layers: dict[LayerAt, Tensor]
    reconstruction: Tensor | None = None
    consistency: Consistency | None = None
    states: tuple[State, ...] | None = None
    iterations_run: Tensor | None = None

    @classmethod
    def of(
        cls, states: Iterable[State], layers: Mapping[LayerAt, int], *, reconstruction: bool = False, keep: bool = False
    ) -> FeedbackResult:
        """Gathered from states as they come. ``layers``: numbers of the layers asked for; ``keep``: the states themselves."""
        logits: list[Tensor] = []
        made: list[Tensor | None] = []
        maps: dict[LayerAt, Tensor] = {}
        kept: list[State] = []
        for state in states:  # not by enumerate, which would hold the last state
            now = {at: i for at, i in layers.items() if at.iteration == len(logits)}
            maps.update({at: (state.feedback if at.feedback else state.maps)[i] for at, i in now.items()})
            logits.append(state.output)
            if reconstruction:
                made += [state.reconstruction] if made else [state.target, state.reconstruction]
            if keep:
                kept.append(state)
            del state  # frees its maps before the next pass
        return cls(
            logits=torch.stack(logits),
            layers=maps,
            reconstruction=torch.stack([h for h in made[: len(logits)] if h is not None]) if reconstruction else None,
            states=tuple(kept) if keep else None,
        )


class ConsistencyWatch:
    """Sees each state in turn: notes its self-consistency, and says which images go on.

    An image stops after the first state with all residuals at most ``tolerance``. With None no image stops.
    """

    def __init__(self, layers: Sequence[FeedbackLayer], tolerance: float | None) -> None:
        self.layers, self.tolerance = layers, tolerance
        self.before: Tensor | None = None  # the last output
        self.residuals: list[Consistency] = []
        self.going: list[Tensor] = []

    def __call__(self, state: State) -> Tensor | None:
        """The images (B,) that take the next step; None for all."""
        found = self.residual(state)
        self.residuals.append(found)
        self.before = state.output
        if self.tolerance is None:
            return None
        going = found.worst() > self.tolerance
        self.going.append(self.going[-1] & going if self.going else going)
        return self.going[-1]

    def residual(self, state: State) -> Consistency:
        """The residuals of a state, each (B,)."""
        assert state.reconstruction is not None
        h = relative_distance(state.target, state.reconstruction)
        wrong, gates = torch.zeros_like(h), 0
        for i, f in state.gate_inputs.items():
            layer = self.layers[i]
            best = layer.forward(f, state.guides[i])[1]
            assert best is not None
            wrong = wrong + (layer.bits(best) != layer.bits(state.latents[i])).flatten(1).sum(1)
            gates += best[0].numel()
        y = torch.zeros_like(h) if self.before is None else relative_distance(self.before, state.output)
        return Consistency(y=y, z=wrong / max(gates, 1), h=h)

    def consistency(self) -> Consistency:
        """The residuals of all states."""
        return Consistency(*(torch.stack([getattr(r, name) for r in self.residuals]) for name in ("y", "z", "h")))

    def iterations_run(self) -> Tensor:
        """The last iteration that each image ran, (B,)."""
        return torch.stack([torch.zeros_like(self.going[0]), *self.going[:-1]]).sum(0)


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b|| / ||b|| for each image, (B,); 0 where both are zero."""
    gap, size = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (a - b, b))
    distance: Tensor = gap / size.clamp_min(torch.finfo(b.dtype).tiny ** 0.5)
    return distance


def gate_biases(model: CNNF, state: State) -> tuple[dict[int, Tensor], Tensor]:
    """The bias b(l) seen at every gate, (1, ...) of the shape of its input f(l), and the bias seen at the output.

    Affine layers between two gates act together: their joint bias is their output for an input of zeros. A ValueError where
    ``model`` matches the norms of layers: each image then has biases of its own.
    """
    if model.match_layers:
        raise ValueError("eta and the latent loss take biases that are the same for each image; set match_layers to False")
    biases: dict[int, Tensor] = {}
    below = torch.zeros_like(state.target[:1])
    for i, layer in enumerate(model.feedback_layers[model.start :], model.start):
        if layer.is_gate:
            biases[i] = below
            below = state.output.new_zeros(1, *layer.forward(below, None)[0].shape[1:])
        else:
            below = layer.bias(below, state.latents.get(i))
    return biases, below


def eta(model: CNNF, state: State) -> Tensor:
    """eta(y, z) = sum over layers of <b(l), z(l) g(l)>, plus y·b(L) for the top bias, for each image (B,).

    With it Lemma A.1 reads y·v = <g(k), h> + eta for the state's own y, without normalisation layers.
    """
    (biases, top), layers = gate_biases(model, state), model.feedback_layers
    total = (state.output * top).flatten(1).sum(1)
    for i, b in biases.items():
        g, z = state.feedback[i], layers[i].bits(state.latents[i])
        total = total + (chosen(b, z) * g if isinstance(layers[i], MaxPool) else b * z * g).flatten(1).sum(1)
    return total


def feedback_losses(
    model: CNNF,
    result: FeedbackResult,
    labels: Tensor,
    *,
    clean: Tensor | None = None,
    terms: Iterable[str] = TERMS,
    reduction: str = "mean",
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The losses ``terms``, each (N+1,): at every iteration, mean over the batch.

    ``result`` comes from ``unroll``: with return_reconstruction for the reconstruction loss, with return_states for the latent and
    norm losses. ``labels``: (B,) class numbers. ``clean``, ``reduction``: see ``reconstruction``; ``smoothing``: see
    ``cross_entropy``.
    """
    makers = {
        "cross_entropy": lambda: cross_entropy(result, labels, smoothing),
        "reconstruction": lambda: reconstruction(result, clean, reduction),
        "latent": lambda: torch.stack([_latent(model, state) for state in _states(result)]),
        "norm": lambda: torch.stack([_norm(model.feedback_layers, state) for state in _states(result)]),
    }
    return {term: makers[term]() for term in terms}


def cross_entropy(result: FeedbackResult, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log p(label | h_t, z_t). ``smoothing``: the share of the target that goes evenly to all classes, in [0, 1)."""
    logits = result.logits if result.logits.dtype == torch.float64 else result.logits.float()
    return torch.stack([F.cross_entropy(at_t, labels, label_smoothing=smoothing) for at_t in logits])


def reconstruction(result: FeedbackResult, clean: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """||h - h_t||²; 0 at iteration 0 where h is the clean one.

    ``clean``: the target features of other (clean) images, for adversarial training; by default those of the batch itself. They
    are the data to be explained, so that no gradient flows into them. ``reduction``, over the elements of h: "sum", as Table 1
    prints it, or "mean", whose weight does not depend on the image size. A ValueError for another reduction, or a result without
    its reconstructions.
    """
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    if result.reconstruction is None:
        raise ValueError("the reconstruction loss needs a result of unroll(..., return_reconstruction=True)")
    h = (result.reconstruction[0] if clean is None else clean).detach()
    share = len(h) if reduction == "sum" else 1
    return torch.stack([F.mse_loss(made, h, reduction=reduction) / share for made in result.reconstruction])


def _states(result: FeedbackResult) -> tuple[State, ...]:
    if result.states is None:
        raise ValueError("the latent and norm losses need a result of unroll(..., return_states=True)")
    return result.states


def _latent(model: CNNF, state: State) -> Tensor:
    """-log p(z_t | y_t), mean over the gates' elements.

    The tractable form of Table 1's Softmax(eta): independent Bernoulli latents at ReLU, one-hot ones in each pooling window
    (pooling straight after ReLU sees no bias and is constant). Gates without a bias say nothing and are left out.
    """
    (biases, _), layers = gate_biases(model, state), model.feedback_layers
    total, count = state.output.new_zeros(()), 0
    for i, b in biases.items():
        layer, g, z = layers[i], state.feedback[i], layers[i].bits(state.latents[i])
        if i == model.start or layers[i - 1].is_gate:
            continue  # no affine layer, hence no bias, between this gate and the one below
        terms = _window_terms(layer, b, g, z) if isinstance(layer, MaxPool) else F.softplus(b * g) - z * (b * g)
        total, count = total + terms.sum() / len(g), count + terms[0].numel()
    return total / max(count, 1)


def _window_terms(layer: MaxPool, b: Tensor, g: Tensor, z: Tensor) -> Tensor:
    """-log softmax over each window of b g↑ at the chosen element, (B, C, h, w)."""
    (height, width), (down, right), (top, left), ceil_mode = layer.windows
    if ceil_mode or layer.dilation != (1, 1):
        raise ValueError(f"{layer.name}: the latent loss of MaxPool2d takes neither ceil_mode nor dilation")

    def windows(x: Tensor) -> Tensor:
        return F.pad(x, (left, left, top, top)).unfold(2, height, down).unfold(3, width, right).flatten(4)

    scores = (windows(b) * g.unsqueeze(-1)).masked_fill(windows(torch.ones_like(b)) == 0, -torch.inf)
    return scores.logsumexp(-1) - chosen(b, z) * g


def _norm(layers: Sequence[FeedbackLayer], state: State) -> Tensor:
    """Sum over layers of | ||f(l)|| - ||g(l)|| | (Assumption A.6, B.1).

    f(l) is the output of a convolution or matrix before any normalisation, g(l) the feedback map at the gate above it before it is
    masked. A gate without such a layer between it and the gate below (pooling straight after ReLU) is left out.
    """
    gaps, norm = [], None
    for i, layer in enumerate(layers):
        norm = state.norms.get(i, norm)
        if layer.is_gate and norm is not None:
            gaps.append((norm.flatten() - torch.linalg.vector_norm(state.feedback[i].flatten(1), dim=1)).abs().mean())
            norm = None
    return torch.stack(gaps).sum() if gaps else state.output.new_zeros(())
