"""CNN-F: the CNN's own weights, transposed, run backwards as a generative model (Huang et al. 2020, Algorithm 1).

One recurrence loop with explicit state; nothing is kept on modules between calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain.checks import unknown
from cnnf_brain.model.autograd import Matched, image_norm
from cnnf_brain.model.consistency import Consistency, self_consistency
from cnnf_brain.model.layers import Conv, Linear, Rule, plan
from cnnf_brain.model.settings import INPUT, SETTINGS, FeedbackSettings, checked_iterations
from cnnf_brain.model.state import State
from cnnf_brain.types import LayerAt


@dataclass
class FeedbackResult:
    """What ``CNNF.unroll`` returns; N is the number of iterations, B the batch.

    ``logits`` (N+1, B, K): the top output at every iteration (of a headless network its top feature map).
    ``layers``: the maps asked for. ``reconstruction`` (N+1, B, ...): entry t is what feedback generated for iteration t
    (norm matched, before the step), entry 0 the target features h of the first pass. ``states``: one State per iteration.
    ``iterations_run`` (B,): where stopping is on, the last iteration that each image ran.
    """

    logits: Tensor
    layers: dict[LayerAt, Tensor]
    reconstruction: Tensor | None = None
    consistency: Consistency | None = None
    states: tuple[State, ...] | None = None
    iterations_run: Tensor | None = None


class CNNF(nn.Module):
    """A sequential CNN with recurrent generative feedback; 0 iterations is the CNN itself.

    ``model(x)`` gives the last iteration's logits (B, K), ``model.unroll(x, ...)`` a FeedbackResult. x is (B, C, H, W) in
    the units in which the CNN was trained.

    Parameters
    ----------
    network
        ``nn.Sequential`` (nested ones too) of the layers in ``cnnf_brain.model.layers.RULES``. Its modules become those of
        the CNNF under the same names: the state dict is the CNN's.
    settings
        How feedback runs, see ``FeedbackSettings``.
    **changes
        Single settings by name (``iterations=2, step=0.1``), in place of those of ``settings``.

    Raises
    ------
    TypeError
        The network is no ``nn.Sequential``, or holds a layer without a feedback rule.
    ValueError
        A setting that is unknown or outside of its range.
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
    def rules(self) -> list[Rule]:
        """The layers in order, as they are now: one that was replaced (a new classifier, say) counts at once."""
        return plan(self, printed=self.ada_relu == "printed")

    @property
    def layer_names(self) -> list[str]:
        """Names of all layers in order, as LayerAt takes them."""
        return [rule.name for rule in self.rules]

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
        """A ValueError where ``at`` names no layer, an iteration that is not run, or one at which the layer is not run."""
        ran = self.iterations if iterations is None else checked_iterations(iterations)
        index = self.index(at.layer)
        if at.iteration > ran:
            raise ValueError(f"{at}: iteration {at.iteration} is not run; the network runs {ran} (0 is the first pass)")
        if index < self.start - 1 and (at.feedback or at.iteration > 0):
            raise ValueError(
                f"{at}: feedback goes down to the target {self.target!r} alone; {at.layer!r} lies below it, "
                f"so that it has iteration 0 only"
            )

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
        """
        n = self.iterations if iterations is None else checked_iterations(iterations)
        kept = tuple(at if isinstance(at, LayerAt) else LayerAt.parse(at) for at in return_layers)
        for at in kept:
            self.check_layer(at, n)
        wanted = [(at, self.index(at.layer)) for at in kept]
        whole = return_consistency or return_states or self.tolerance is not None  # every gate's f and g are needed
        spare = not (whole or torch.is_grad_enabled() or any(at.feedback for at in kept))
        clean, maps = self.below_target(x, {i for _, i in wanted})
        h, before = clean, None
        guides: dict[int, Tensor] = {}  # not dict[int, Tensor](): torch.compile cannot trace that
        sizes: dict[int, Tensor] = {}
        active = torch.ones(len(x), dtype=torch.bool, device=x.device)
        logits, states, reconstructions, residuals, ran = [], [], [clean], [], []
        layers: dict[LayerAt, Tensor] = {}
        for t in range(n + 1):
            now = [(at, i) for at, i in wanted if at.iteration == t]
            generate = whole or t < n or any(at.feedback for at, _ in now)
            asked = {i for at, i in now if not at.feedback}
            state = self.sweep(h, guides, asked, sizes=sizes, gates=generate, inputs=whole, spare=spare)
            if t == 0:
                state.maps.update(maps)
            if generate:
                self.generate(state, {i for at, i in now if at.feedback}, everything=whole, spare=spare)
                reconstruction = self.matched(state.generated, clean)
            logits.append(state.output)
            layers.update({at: (state.feedback if at.feedback else state.maps)[i] for at, i in now})
            if return_states:
                states.append(state)
            if return_consistency or self.tolerance is not None:
                residuals.append(self_consistency(self.rules, state, before, reconstruction))
            if self.tolerance is not None:
                ran.append(active)
                active = active & (residuals[-1].worst() > self.tolerance)
            if t < n:
                if return_reconstruction:
                    reconstructions.append(reconstruction)
                h, guides = self.step_towards(h, reconstruction, guides, state, active)
            before = state.output
            del state  # its maps need not lie beside those of the next pass
        return FeedbackResult(
            logits=torch.stack(logits),
            layers=layers,
            reconstruction=torch.stack(reconstructions) if return_reconstruction else None,
            consistency=Consistency.stack(residuals) if return_consistency else None,
            states=tuple(states) if return_states else None,
            iterations_run=torch.stack(ran).sum(0) - 1 if ran else None,
        )

    def below_target(self, x: Tensor, wanted: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The target features h of the first pass, and the maps asked for up to the target."""
        maps = {-1: x} if -1 in wanted else {}
        for i, rule in enumerate(self.rules[: self.start]):
            x, _ = rule.forward(x, None)
            if i in wanted:
                maps[i] = x
        return x, maps

    def sweep(
        self,
        h: Tensor,
        guides: Mapping[int, Tensor],
        wanted: set[int],
        *,
        sizes: dict[int, Tensor] | None = None,
        gates: bool = True,
        inputs: bool = False,
        spare: bool = False,
    ) -> State:
        """One feedforward pass from the target on; gates follow ``guides`` (none in the first pass).

        ``wanted``: layers whose outputs are kept; ``gates``, ``inputs``: whether z and f of the gates are; ``spare``:
        whether ``guides``, and maps that are not kept, may be overwritten; ``sizes``: by layer the norms to which layers are
        matched, noted where there is none yet.
        """
        state = State(h, h, {}, {}, {}, {})
        if self.start - 1 in wanted:
            state.maps[self.start - 1] = h
        x, rules = h, self.rules
        norm: Tensor | None = None  # of the last convolution's or matrix's output, up to the gate above it
        for i, rule in enumerate(rules[self.start :], self.start):
            state.inputs[i] = x.shape
            if inputs and rule.is_gate:
                state.gate_inputs[i] = x
                if norm is not None:
                    state.output_norms[i] = norm
                norm = None
            # what a convolution or a matrix made is a map of its own, no view of another
            made = i > self.start and isinstance(rules[i - 1], Conv | Linear) and i - 1 not in wanted
            x, z = rule.forward(x, guides.get(i), spare and made)
            if inputs and isinstance(rule, Conv | Linear):
                norm = image_norm(x).flatten()
            if self.match_layers and sizes is not None and isinstance(rule, Conv | Linear):
                if i in sizes:
                    x = Matched.apply(x, sizes[i], image_norm(x.detach()))
                else:
                    sizes[i] = image_norm(x)
            if z is not None and gates:
                state.latents[i] = z
            if i in wanted:
                state.maps[i] = x
        state.output = x
        return state

    def generate(self, state: State, wanted: set[int], *, everything: bool = False, spare: bool = False) -> None:
        """The feedback pass from the output down to the target (eq. 2), written into ``state``.

        ``wanted``, or ``everything``: where g is kept; ``spare``: whether the gates' z may be dropped once used.
        """
        g, unmasked = state.output + 0.0, None  # no negative zeros: gates read the sign bit
        for i, rule in reversed(list(enumerate(self.rules))[self.start :]):
            if i in wanted or (everything and rule.is_gate):
                state.feedback[i] = g
            if rule.is_gate:
                state.guides[i], unmasked_next = g.detach(), g
            else:
                unmasked_next = None
            g = rule.feedback(g, state.inputs[i], state.latents.get(i), unmasked)
            if spare and rule.is_gate:
                del state.latents[i]
            unmasked = unmasked_next
        if self.start - 1 in wanted:
            state.feedback[self.start - 1] = g
        state.generated = g

    def matched(self, reconstruction: Tensor | None, clean: Tensor) -> Tensor:
        """The reconstruction, scaled image by image to the norm of the clean target features if so set."""
        assert reconstruction is not None
        if not self.match_norm:
            return reconstruction
        return Matched.apply(reconstruction, image_norm(clean), image_norm(reconstruction.detach()))

    def step_towards(
        self,
        h: Tensor,
        reconstruction: Tensor,
        guides: Mapping[int, Tensor],
        state: State,
        active: Tensor,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Target and guides of the next iteration; an image that is not ``active`` keeps both, and so its whole state."""
        new_h = reconstruction if self.step == 1 else h + self.step * (reconstruction - h)
        dropout = {i: z for i, z in state.latents.items() if i not in state.guides}
        if self.tolerance is None:
            return new_h, {**state.guides, **dropout}

        def held(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)

        kept = {i: held(g, guides[i] if i in guides else torch.ones_like(g)) for i, g in state.guides.items()}
        return held(new_h, h), {**kept, **dropout}
