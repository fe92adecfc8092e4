"""Iterated conditional modes: one sweep is exact coordinate ascent on y·v, and z is the MAP of Theorem 2.1.C."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model.drawn import draw_model, generated_from, inner, literal_latents, masks_of
from oracles.feedback import Pool, Rectifier, feedforward, literal
from torch import nn

from cnnf_brain import CNNF

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def sweep_with(model: Any, h: Any, y: Any, state: Any) -> Any:
    """One feedforward sweep of x and y held: gates follow the feedback that y generates with the old z."""
    made = generated_from(model, state, y)
    masks = {i: z for i, z in state.latents.items() if i not in made.guides}
    return model.sweep(h, {**made.guides, **masks})


@pytest.mark.parametrize("seed", range(20))
def test_one_sweep_never_lowers_y_times_v(seed: int) -> None:
    model, x = draw_model(seed)
    h, _ = model.below_target(x)
    state = model.sweep(h)
    y = torch.randn_like(state.output) * state.output.abs().max()
    rises = []
    for _ in range(10):
        after = sweep_with(model, h, y, state)
        size = inner(y.abs(), state.output.abs()).clamp_min(1)
        rises.append((inner(y, after.output) - inner(y, state.output)) / size)
        state = after
    assert torch.stack(rises).min() >= -1e-12
    assert torch.stack(rises)[-3:].abs().max() < 1e-12  # settled


def test_sweeps_do_raise_y_times_v_somewhere() -> None:
    """Without this the test above would also pass for gates that never move."""
    rises = []
    for seed in range(10):
        model, x = draw_model(seed)
        h, _ = model.below_target(x)
        state = model.sweep(h)
        y = torch.randn_like(state.output)
        rises.append(inner(y, sweep_with(model, h, y, state).output) - inner(y, state.output))
    assert (torch.cat(rises) > 1e-3).double().mean() > 0.5


@pytest.mark.parametrize("seed", range(4))
def test_no_single_bit_flip_or_reroute_beats_the_map(seed: int) -> None:
    """After the sweeps settle, every other value of every single latent is tried by the literal oracle."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 1),
        nn.Conv2d(2, 3, 2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(12, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).double()
    model = CNNF(network, iterations=0)
    x, y = torch.randn(1, 1, 6, 6, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    state = model.sweep(x)
    for _ in range(12):
        state = sweep_with(model, x, y, state)
    layers = list(literal(model, x.shape[1:], masks_of(model, state, 0)).values())
    z, top, image = literal_latents(model, state, 0), y[0].numpy(), x[0].flatten().numpy()
    best = top @ feedforward(layers, image, z=z).v
    assert best == pytest.approx(float(inner(y, state.output)), rel=1e-10)
    tried = 0
    for i, bits in z.items():
        for j in range(len(bits)):
            if isinstance(layers[i], Rectifier):
                others = [1 - bits[j]]
            else:
                assert isinstance(layers[i], Pool)
                others = [at for at in layers[i].windows[j] if at != bits[j]]
            for other in others:
                changed = {**z, i: np.array([*bits[:j], other, *bits[j + 1 :]], dtype=int)}
                assert top @ feedforward(layers, image, z=changed).v <= best + 1e-12
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("seed", range(6))
def test_gates_depend_on_the_sign_of_g_alone_and_feedback_is_linear_in_y(seed: int) -> None:
    model, x = draw_model(seed)
    for state in model.unroll(x, return_states=True).states:
        y1, y2 = torch.randn_like(state.output), torch.randn_like(state.output)
        one, two, both = (generated_from(model, state, y) for y in (y1, y2, 2 * y1 - 3 * y2))
        scale = one.generated.abs().max() + two.generated.abs().max()
        assert (both.generated - (2 * one.generated - 3 * two.generated)).abs().max() <= 1e-12 * scale
        larger = generated_from(model, state, 7.5 * y1)
        masks = {i: z for i, z in state.latents.items() if i not in one.guides}
        a, b = (model.sweep(x if model.start == 0 else state.target, {**s.guides, **masks}) for s in (one, larger))
        assert torch.equal(a.output, b.output)


def test_feedback_confirms_itself() -> None:
    """x fixed and y = v_t: v_t·v_{t+1} >= ||v_t||² (the corollary of coordinate ascent)."""
    for seed in range(10):
        model, x = draw_model(seed)
        h, _ = model.below_target(x)
        state = model.sweep(h)
        for _ in range(3):
            after = sweep_with(model, h, state.output, state)
            v = state.output
            assert (inner(v, after.output) - inner(v, v) >= -1e-12 * inner(v, v).clamp_min(1)).all()
            state = after


def test_without_biases_the_network_is_homogeneous() -> None:
    """v(cx) = c v(x) with the gates held, for c > 0."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3, bias=False)
    ).double()
    model = CNNF(network)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    state = model.sweep(x)
    model.generate(state, x)
    guides = state.guides
    one, scaled = model.sweep(x, guides).output, model.sweep(2.5 * x, guides).output
    torch.testing.assert_close(scaled, 2.5 * one, rtol=1e-12, atol=1e-13)
    flipped = {i: torch.where(g >= 0, -1.0, 1.0) for i, g in guides.items()}
    torch.testing.assert_close(model.sweep(-x, flipped).output, -one, rtol=1e-12, atol=1e-13)
