"""CNN-F: the CNN's own weights, transposed, run backwards as a generative model (Huang et al. 2020, Algorithm 1).

``CNNF.states`` is the only recurrence. Nothing is kept on modules between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnf_brain.checks import unknown
from cnnf_brain.model.autograd import Bits, SignsAlone, image_norm, matched, packed, to_norm, unpacked
from cnnf_brain.model.layers import FeedbackLayer, MaxPool, ReLU, plan
from cnnf_brain.model.settings import INPUT, SETTINGS, FeedbackSettings, checked_iterations
from cnnf_brain.model.state import ConsistencyWatch, FeedbackResult, State
from cnnf_brain.types import LayerAt


class Kept(NamedTuple):
    """What a pass leaves in its State.

    ``maps``, ``feedback``: numbers of layers. ``gates``: f and g of every gate, and the norms of f(l). ``generate``: whether there
    is a feedback pass. ``spare``: maps that are not kept may be overwritten.
    """

    maps: frozenset[int] = frozenset()
    feedback: frozenset[int] = frozenset()
    gates: bool = False
    generate: bool = True
    spare: bool = False


PLAIN = Kept()
Maps = Mapping[int, Tensor]  # by number of the layer
NONE: Maps = {}


class CNNF(nn.Module):
    """A sequential CNN with recurrent generative feedback; 0 iterations is the CNN itself.

    ``model(x)`` gives the last iteration's logits (B, K), ``model.unroll(x, ...)`` a FeedbackResult. x is (B, C, H, W) in
    the units in which the CNN was trained.

    Parameters
    ----------
    network
        ``nn.Sequential`` (nested ones too) of the layers in ``cnnf_brain.model.layers.FEEDBACK_LAYERS``. Its modules become those
        of the CNNF under the same names: the state dict is the CNN's.
    settings
        How feedback runs, see ``FeedbackSettings``.
    **changes
        Single settings by name (``iterations=2, step=0.1``), in place of those of ``settings``.

    Raises
    ------
    TypeError
        The network is no ``nn.Sequential``.
    ValueError
        A layer without a feedback rule; a setting that is unknown or outside of its range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    >>> model = CNNF(network, iterations=2, match_norm=True)
    >>> x = torch.zeros(5, 1, 8, 8)
    >>> model(x).shape
    torch.Size([5, 10])
    >>> torch.equal(model(x, iterations=0), network(x))
    True
    """

    iterations: int
    target: str
    step: float
    match_norm: bool
    match_layers: bool
    ada_relu: str
    tolerance: float | None

    def __init__(self, network: nn.Sequential, settings: FeedbackSettings | None = None, **changes: Any) -> None:
        super().__init__()
        if not isinstance(network, nn.Sequential):
            raise TypeError(f"CNNF takes an nn.Sequential, not a {type(network).__name__}; list its layers in one")
        chosen = FeedbackSettings.of({**(settings.as_dict() if settings else {}), **changes})
        layers = plan(network)
        if not layers:
            raise ValueError("the network has no layers")
        for layer in layers:  # weight_norm, spectral_norm and prune of torch.nn.utils are hooks too
            if layer.module._forward_pre_hooks or layer.module._forward_hooks:
                raise ValueError(
                    f"layer {layer.name!r} has hooks, which CNNF would not run; remove them (remove_weight_norm, say) first"
                )
        for name, value in chosen.as_dict().items():
            setattr(self, name, value)
        self.start = 0
        for name, child in network._modules.items():
            if name == INPUT or hasattr(self, name):
                raise ValueError(f"layer {name!r}: CNNF itself uses that name; give the layer another")
            self.add_module(name, child)
        self.start = self.index(self.target) + 1
        if self.start == len(layers):
            raise ValueError(f"target {self.target!r} is the last layer; nothing above it could reconstruct it")

    @property
    def feedback_layers(self) -> list[FeedbackLayer]:
        """The layers in order, as they are now: a layer that was replaced (a new classifier, say) counts at once."""
        return plan(self, printed=self.ada_relu == "printed")

    @property
    def layer_names(self) -> list[str]:
        """Names of all layers in order, as LayerAt takes them."""
        return [layer.name for layer in self.feedback_layers]

    @property
    def settings(self) -> FeedbackSettings:
        """How feedback runs now."""
        return FeedbackSettings(**{name: getattr(self, name) for name in SETTINGS})

    def index(self, name: str) -> int:
        """Number of the layer ``name`` (-1 for the image)."""
        names = self.layer_names
        if name == INPUT:
            return -1
        if name not in names:
            raise unknown("layer", name, [INPUT, *names])
        return names.index(name)

    def check_layer(self, at: LayerAt, iterations: int | None = None) -> None:
        """A ValueError where ``at`` names no layer, or an iteration at which the layer is not run."""
        ran = self.iterations if iterations is None else checked_iterations(iterations)
        index = self.index(at.layer)
        if at.joined:
            raise ValueError(f"{at}: a joint feature space is made of Grams (compare, layer_grams); ask for its parts here")
        if at.iteration > ran:
            raise ValueError(f"{at}: iteration {at.iteration} is not run; the network runs {ran} (0 is the first pass)")
        if index < self.start - 1 and (at.feedback or at.iteration > 0):
            below = f"{at.layer!r} lies below it, so that it has iteration 0 only"
            raise ValueError(f"{at}: feedback goes down to the target {self.target!r} alone; {below}")

    def forward(self, x: Tensor, *, iterations: int | None = None) -> Tensor:
        """Logits of the last iteration (B, K)."""
        return self.unroll(x, iterations=iterations).logits[-1]

    def unroll(
        self,
        x: Tensor,
        *,
        iterations: int | None = None,
        return_layers: Iterable[LayerAt | str] = (),
        return_reconstruction: bool = False,
        return_consistency: bool = False,
        return_states: bool = False,
    ) -> FeedbackResult:
        """Algorithm 1: feedforward, then N times feedback, step and feedforward; every iteration's record.

        Parameters
        ----------
        x
            (B, C, H, W).
        iterations
            N >= 0; by default the network's own.
        return_layers
            Maps by layer and iteration, as LayerAt or text (``features.23@2``, ``features.23@2:feedback``).
        return_reconstruction
            The reconstructed target of every iteration.
        return_consistency
            Definition 2.1, see ``Consistency``.
        return_states
            Everything that the losses of Table 1 need.

        Raises
        ------
        ValueError
            A layer or an iteration that the network does not run.
        """
        n = self.iterations if iterations is None else checked_iterations(iterations)
        ats = [at if isinstance(at, LayerAt) else LayerAt.parse(at) for at in return_layers]
        for at in ats:
            self.check_layer(at, n)
        asked = {at: self.index(at.layer) for at in ats}
        watch = ConsistencyWatch(self.feedback_layers, self.tolerance)
        watched = return_consistency or self.tolerance is not None
        gates = watched or return_states
        keep = kept_of(asked, n, gates, spare=not (gates or torch.is_grad_enabled()))
        states = self.states(x, keep, watch=watch if watched else None)
        result = FeedbackResult.of(states, asked, reconstruction=return_reconstruction, keep=return_states)
        result.consistency = watch.consistency() if return_consistency else None
        result.iterations_run = watch.iterations_run() if self.tolerance is not None else None
        return result

    def states(
        self,
        x: Tensor,
        keep: Sequence[Kept] | None = None,
        *,
        passes: CNNF | Checkpointed | None = None,
        watch: Callable[[State], Tensor | None] | None = None,
    ) -> Iterator[State]:
        """The recurrence: a State for each iteration 0..N. Its maps are freed once the caller drops it.

        ``keep``: what each iteration leaves in its state; by default everything, for the network's own N. ``passes``: who runs the
        passes, by default the network itself. ``watch`` is shown each state; its answer (B,) says which images take the next step
        (None: all). The others keep their target and guides, and so their whole state.
        """
        keep = [Kept(gates=True)] * (self.iterations + 1) if keep is None else keep
        clean, maps = self.below_target(x, keep[0].maps)
        h = clean
        given: dict[int, Tensor] = {}  # not dict[int, Tensor](): torch.compile cannot trace that
        sizes: dict[int, Tensor] = {}
        for t, kept in enumerate(keep):
            state = (passes or self).sweep(h, given, sizes, kept)
            if t == 0:
                state.maps.update(maps)
            if kept.generate:
                (passes or self).generate(state, clean, kept)
            active = watch(state) if watch else None
            yield state
            if t + 1 < len(keep):
                assert state.reconstruction is not None
                h, given = following(state, self.step_towards(h, state.reconstruction), active)
                sizes = sizes or (state.norms if self.match_layers else {})
            del state

    def below_target(self, x: Tensor, wanted: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """The target features h of the first pass, and the maps asked for up to the target."""
        maps = {-1: x} if -1 in wanted else {}
        for i, layer in enumerate(self.feedback_layers[: self.start]):
            x, _ = layer.forward(x, None)
            if i in wanted:
                maps[i] = x
        return x, maps

    def sweep(self, h: Tensor, given: Maps = NONE, sizes: Maps = NONE, keep: Kept = PLAIN) -> State:
        """The feedforward pass from the target on; for ``given`` and ``sizes`` see State."""
        state = State(h, h, given, sizes)
        if self.start - 1 in keep.maps:
            state.maps[self.start - 1] = h
        state.output = self.climb(h, range(self.start, len(self.feedback_layers)), state, keep)
        return state

    def climb(self, x: Tensor, part: range, state: State, keep: Kept) -> Tensor:
        """The layers numbered ``part`` of a feedforward pass, from the input ``x`` of the first to the output of the last, which is
        returned; the rest is written into ``state``."""
        layers, matching = self.feedback_layers, self._matching(keep)
        own = False  # whether x is a map of its own, which nobody else sees
        for i in part:
            layer = layers[i]
            state.inputs[i] = x.shape
            if keep.gates and layer.is_gate:
                state.gate_inputs[i] = x
            z: Tensor | None
            if i in matching and isinstance(layer, ReLU):
                x, z, state.norms[i - 1] = layer.matched(x, state.given.get(i), state.sizes.get(i - 1))
            else:
                x, z = layer.forward(x, state.given.get(i), keep.spare and own)
            if i in matching and layer.has_weights:
                x, state.norms[i] = matched(x, state.sizes.get(i), keep.spare)
            if z is not None and keep.generate:
                state.latents[i] = z
            if i in keep.maps:
                state.maps[i] = x
            own = layer.has_weights and i not in keep.maps
        return x

    def _matching(self, keep: Kept) -> set[int]:
        """The layers that read the norms of f(l), and scale f(l) to those of the first pass: where gradients are wanted, and nobody
        else sees f(l), the ReLU above a convolution or matrix, which reads and writes the map anyway; else that layer itself."""
        if not (keep.gates or self.match_layers):
            return set()
        layers = dict(list(enumerate(self.feedback_layers))[self.start :])
        weights = {i for i, layer in layers.items() if layer.has_weights}
        alone = {i for i in weights if isinstance(layers.get(i + 1), ReLU) and i not in keep.maps}
        alone = alone if torch.is_grad_enabled() and not keep.gates else set()
        return (weights - alone) | {i + 1 for i in alone}

    def generate(self, state: State, clean: Tensor, keep: Kept = PLAIN) -> None:
        """The feedback pass from the output down to the target (eq. 2), written into ``state``.

        ``clean``: the target features of the first pass; with ``match_norm`` the reconstruction is scaled to their norm.
        """
        g, unmasked = state.output + 0.0, None  # no negative zeros: gates read the sign bit
        for i, layer in reversed(list(enumerate(self.feedback_layers))[self.start :]):
            if i in keep.feedback or (keep.gates and layer.is_gate):
                state.feedback[i] = g
            if layer.is_gate:
                state.guides[i] = self._guide(g)
            below = layer.feedback(g, state.inputs[i], state.latents.get(i), unmasked)
            if keep.spare and layer.is_gate:
                del state.latents[i]
            g, unmasked = below, g if layer.is_gate else None
        if self.start - 1 in keep.feedback:
            state.feedback[self.start - 1] = g
        state.generated = g
        state.reconstruction = to_norm(g, image_norm(clean)) if self.match_norm else g

    def step_towards(self, h: Tensor, reconstruction: Tensor) -> Tensor:
        """The target features of the next iteration."""
        return reconstruction if self.step == 1 else h + self.step * (reconstruction - h)

    def _guide(self, g: Tensor) -> Tensor:
        """What a gate of the next pass sees of the feedback map ``g``: its signs, which have no gradient."""
        return g.detach()


def kept_of(asked: Mapping[LayerAt, int], n: int, gates: bool, spare: bool) -> list[Kept]:
    """What iterations 0..n keep for the layers ``asked`` for (their numbers). A last feedback pass that nobody needs is not run."""
    spare = spare and not any(at.feedback for at in asked)
    keep = []
    for t in range(n + 1):
        maps = frozenset(i for at, i in asked.items() if at.iteration == t and not at.feedback)
        feedback = frozenset(i for at, i in asked.items() if at.iteration == t and at.feedback)
        keep.append(Kept(maps, feedback, gates, gates or t < n or bool(feedback), spare))
    return keep


def following(state: State, h: Tensor, active: Tensor | None) -> tuple[Tensor, dict[int, Tensor]]:
    """Target features and what the next pass is given, where ``h`` is the step; images that are not ``active`` keep both."""
    dropout = {i: z for i, z in state.latents.items() if i not in state.guides}
    if active is None:
        return h, {**state.guides, **dropout}

    def held(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)

    kept = {i: held(g, state.given[i] if i in state.given else torch.ones_like(g)) for i, g in state.guides.items()}
    return held(h, state.target), {**kept, **dropout}


class Checkpointed:
    """The passes of ``model``, each computed again, with the same random numbers, when its gradient is.

    Between forward and backward only what goes from pass to pass is held: target features, signs of the feedback maps, latents (in
    bits, and positions of pooling), dropout masks.
    """

    def __init__(self, model: CNNF) -> None:
        self.model = model

    def sweep(self, h: Tensor, given: Maps, sizes: Maps, keep: Kept) -> State:
        """The feedforward pass; latents are held in their small form. It is computed again in two parts, the first up to the first
        pooling, where a map is large below and small above: less has to be held at once."""
        layers = self.model.feedback_layers
        pools = [i + 1 for i, layer in enumerate(layers) if isinstance(layer, MaxPool) and self.model.start <= i]
        state, ends = State(h, h), [self.model.start, *pools[:1], len(layers)]
        for part in (range(first, end) for first, end in pairwise(ends)):
            made = checkpoint(self._up, state.output, part, given, sizes, keep, use_reentrant=False)
            state.output, latents, inputs, norms = made
            state.latents.update(latents)
            state.inputs.update(inputs)
            state.norms.update(norms)
        return state

    def generate(self, state: State, clean: Tensor, keep: Kept) -> None:
        """The feedback pass; of its maps at gates the signs are held."""
        held = (state.output, state.latents, state.inputs, clean)
        state.reconstruction, state.guides = checkpoint(self._down, *held, keep, use_reentrant=False)

    def _up(self, x: Tensor, part: range, given: Maps, sizes: Maps, keep: Kept) -> tuple[Any, ...]:
        state, layers = State(x, x, SignsAlone(given), sizes), self.model.feedback_layers
        output = self.model.climb(x, part, state, keep)
        latents: dict[int, Any] = {}
        for i, z in state.latents.items():
            positions = z if z.is_floating_point() else z.int()  # dropout's mask, or pooling's positions
            latents[i] = packed(z != 0, z.dtype) if isinstance(layers[i], ReLU) else positions
        return output, latents, state.inputs, state.norms

    def _down(
        self, output: Tensor, latents: dict[int, Any], inputs: dict[int, torch.Size], clean: Tensor, keep: Kept
    ) -> tuple[Any, ...]:
        state = State(output, output, inputs=inputs, guides=SignsAlone())
        for i, z in latents.items():
            state.latents[i] = unpacked(z) if isinstance(z, Bits) else z if z.is_floating_point() else z.long()
        self.model.generate(state, clean, keep)
        return state.reconstruction, {**state.guides}


def recomputed(model: CNNF, x: Tensor) -> FeedbackResult:
    """What ``model.unroll(x, return_reconstruction=True)`` gives, value and gradient, of less memory (see ``Checkpointed``).

    A ValueError where ``model`` stops images early (``tolerance``).
    """
    if model.tolerance is not None:
        raise ValueError("recomputing takes every image through all iterations; set tolerance to None")
    keep = kept_of({}, model.iterations, gates=False, spare=False)
    return FeedbackResult.of(model.states(x, keep, passes=Checkpointed(model)), {}, reconstruction=True)
