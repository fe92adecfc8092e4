"""Lemma A.1, Corollary A.1.1 and Lemma A.2 at every iteration, with eta from the package and from the literal oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model.drawn import draw_model, generated_from, inner, literal_latents, masks_of
from oracles.feedback import eta as literal_eta
from oracles.feedback import feedback as literal_feedback
from oracles.feedback import feedforward, lemma, literal, recur
from torch import nn

from cnnf_brain import CNNF, FeatureNorm, small_net
from cnnf_brain.model.autograd import chosen
from cnnf_brain.model.layers import MaxPool
from cnnf_brain.model.state import eta, gate_biases

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
SEEDS = range(16)
EXACT = 1e-10


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def close(left: Any, right: Any, scale: Any = None) -> None:
    """Equal to 1e-10 of the size of the terms (``scale``: where they cancel)."""
    left, right = torch.as_tensor(left), torch.as_tensor(right)
    size = torch.maximum(left.abs(), right.abs()) if scale is None else torch.as_tensor(scale).abs()
    assert bool(((left - right).abs() <= EXACT * size.clamp_min(1.0)).all()), f"{left} != {right}"


@pytest.mark.parametrize("seed", SEEDS)
def test_lemma_a1_at_every_iteration_for_its_own_y_and_for_any_y(seed: int) -> None:
    model, x = draw_model(seed)
    states = model.unroll(x, return_states=True).states
    assert len(states) == model.iterations + 1  # type: ignore[arg-type]
    for state in states:
        v = state.output
        for y in (v, torch.randn_like(v) * v.abs().max()):
            made = generated_from(model, state, y)
            close(inner(y, v), inner(made.generated, state.target) + eta(model, made))  # type: ignore[arg-type]
        assert torch.equal(generated_from(model, state, v).generated, state.generated)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_lemma_a1_with_eta_from_the_literal_oracle(seed: int) -> None:
    model, x = draw_model(seed)
    for state in model.unroll(x, return_states=True).states:
        package = eta(model, state)
        for image in range(len(x)):
            layers = list(literal(model, x.shape[1:], masks_of(model, state, image)).values())[model.start :]
            step = feedforward(layers, state.target[image].flatten().numpy(), z=literal_latents(model, state, image))
            np.testing.assert_allclose(step.v, state.output[image].flatten(), rtol=EXACT, atol=EXACT)
            g, bottom = literal_feedback(layers, step, step.v)
            left, right = step.v @ step.v, bottom @ step.h + literal_eta(layers, g)
            assert left == pytest.approx(right, rel=EXACT, abs=EXACT)
            assert float(package[image]) == pytest.approx(literal_eta(layers, g), rel=EXACT, abs=EXACT)


def literal_options(model: CNNF) -> dict[str, Any]:
    """The model's settings as the oracle takes them."""
    modules = [layer.module for layer in model.feedback_layers[model.start :]]
    matched = [i for i, m in enumerate(modules) if isinstance(m, nn.Conv2d | nn.Linear)] if model.match_layers else ()
    return {"step": model.step, "match_norm": model.match_norm, "printed": model.ada_relu == "printed", "matched": matched}


@pytest.mark.parametrize(
    ("seed", "settings"),
    [(seed, {}) for seed in SEEDS]
    + [(seed, {"ada_relu": "printed"}) for seed in range(6)]
    + [(seed, {"match_layers": True}) for seed in range(12)],
)
def test_algorithm_1_equals_the_literal_loop(seed: Any, settings: Any) -> None:
    """Every logit, reconstruction, feedback map and latent of every iteration, gates chosen by the oracle itself."""
    model, x = draw_model(seed, **settings)
    everything = [f"{name}@{t}" for t in range(model.iterations + 1) for name in model.layer_names[model.start :]]
    kept = [*everything, *(f"{name}:feedback" for name in everything)]
    result = model.unroll(x, return_layers=kept, return_reconstruction=True, return_states=True)
    for image in range(len(x)):
        layers = list(literal(model, x.shape[1:], masks_of(model, result.states[0], image)).values())[model.start :]
        steps = recur(layers, result.reconstruction[0, image].flatten().numpy(), model.iterations, **literal_options(model))
        scale = max(np.abs(step.v).max() for step in steps)
        for t, step in enumerate(steps):
            same = {"rtol": 1e-9, "atol": 1e-12 * max(scale, 1)}
            np.testing.assert_allclose(result.logits[t, image].flatten(), step.v, **same)
            state = result.states[t]
            np.testing.assert_allclose(state.generated[image].flatten(), step.generated, **same)
            for i, z in literal_latents(model, state, image).items():
                np.testing.assert_array_equal(z, step.z[i])
            if t < model.iterations:
                made = result.reconstruction[t + 1, image].flatten()
                np.testing.assert_allclose(made, step.reconstruction, **same)
        for at, values in result.layers.items():
            maps = steps[at.iteration].g if at.feedback else steps[at.iteration].a
            expected = maps[model.index(at.layer) - model.start]
            np.testing.assert_allclose(values[image].flatten(), expected, rtol=1e-9, atol=1e-12 * max(scale, 1))


@pytest.mark.parametrize("seed", range(12))
def test_corollary_a11_at_every_layer(seed: int) -> None:
    """y·v = <g(l), a(l)> + <b, z g> of the gates above, for every layer l from the target on and every iteration."""
    model, x = draw_model(seed, iterations=2)
    names = ["input", *model.layer_names][model.start :]
    at = [f"{name}@{t}{kind}" for name in names for t in range(3) for kind in ("", ":feedback")]
    result = model.unroll(x, return_layers=at, return_states=True)
    for t, state in enumerate(result.states):  # type: ignore[arg-type]
        left = inner(state.output, state.output)
        for name in names:
            index = model.index(name)
            above = eta_above(model, state, index)
            maps = {str(key): value for key, value in result.layers.items()}
            right = inner(maps[f"{name}@{t}"], maps[f"{name}@{t}:feedback"]) + above
            close(left, right, scale=left.abs() + above.abs())


def eta_above(model: Any, state: Any, index: Any) -> Any:
    """eta of the part of the network above layer ``index``: biases seen at its gates when zeros enter there."""
    if index + 1 == len(model.feedback_layers):
        return torch.zeros(len(state.output), dtype=state.output.dtype)
    below = torch.zeros(1, *state.inputs[index + 1][1:], dtype=state.output.dtype)
    total = torch.zeros(len(state.output), dtype=state.output.dtype)
    for i in range(index + 1, len(model.feedback_layers)):
        layer = model.feedback_layers[i]
        if layer.is_gate:
            g, z = state.feedback[i], layer.bits(state.latents[i])
            total = total + inner(chosen(below, z) if isinstance(layer, MaxPool) else below * z, g)
            below = torch.zeros(1, *layer.forward(below[:1], None)[0].shape[1:], dtype=below.dtype)
        else:
            below = layer.bias(below, state.latents.get(i))
    return total + inner(below, state.output)


@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_lemma_a2_with_the_ratios_of_two_normalisations(kind: str) -> None:
    """y·v = rho2 rho1 <g(0), x> + rho2 eta1 + eta2 with rho(l) = size of g(l) / size of f(l), at every iteration."""
    torch.manual_seed(0)
    model = CNNF(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            FeatureNorm(4, kind),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, bias=False),
            FeatureNorm(3, kind),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 16),
            nn.ReLU(),
            nn.Linear(16, 4),
        ).double(),
        iterations=3,
    )
    for norm in (model.get_submodule(name) for name in ("1", "4")):
        nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    convs = [f"{name}@{t}" for name in ("0", "3") for t in range(4)]
    result = model.unroll(x, return_layers=convs, return_states=True)
    maps = {str(at): value for at, value in result.layers.items()}

    def size(a: Any) -> Any:
        root = a.flatten(1).square().sum(1).sqrt()
        return root if kind == "l2" else root / a[0].numel() ** 0.5

    for t, state in enumerate(result.states):  # type: ignore[arg-type]
        for y in (state.output, torch.randn_like(state.output)):
            made = generated_from(model, state, y)
            b1, b2 = (model.get_submodule(name).bias.view(1, -1, 1, 1) for name in ("1", "4"))
            eta1 = inner(b1 * model.feedback_layers[2].bits(state.latents[2]), made.feedback[2])
            pooled_bias = b2.expand_as(made.feedback[5])
            fc1, fc2 = model.get_submodule("7").bias, model.get_submodule("9").bias
            eta2 = (
                inner(pooled_bias, made.feedback[5])
                + inner(fc1 * model.feedback_layers[8].bits(state.latents[8]), made.feedback[8])
                + y @ fc2
            )
            rho1 = size(made.feedback[2]) / size(maps[f"0@{t}"])
            rho2 = size(made.feedback[5]) / size(maps[f"3@{t}"])
            right = rho2 * rho1 * inner(made.generated, x if t == 0 else state.target) + rho2 * eta1 + eta2  # type: ignore[arg-type]
            close(inner(y, state.output), right)


@pytest.mark.parametrize("seed", range(12))
def test_lemma_a2_with_the_literal_oracle_on_random_normalised_nets(seed: int) -> None:
    model, x = draw_model(seed, normalised=True)
    for state in model.unroll(x, return_states=True).states:
        for image in range(len(x)):
            layers = list(literal(model, x.shape[1:], masks_of(model, state, image)).values())[model.start :]
            step = feedforward(layers, state.target[image].flatten().numpy(), z=literal_latents(model, state, image))
            np.testing.assert_allclose(step.v, state.output[image].flatten(), rtol=EXACT, atol=EXACT)
            _, bottom = literal_feedback(layers, step, step.v)
            np.testing.assert_allclose(bottom, state.generated[image].flatten(), rtol=EXACT, atol=EXACT)
            assert step.v @ step.v == pytest.approx(lemma(layers, step, step.v), rel=EXACT, abs=EXACT)


def test_the_printed_adarelu_breaks_lemma_a1_and_the_signed_one_does_not() -> None:
    """Where f, g < 0 the printed one passes |f| on: the two sides then differ by sum of 2 |f| |g| over those units."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).double()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    for ada_relu in ("signed", "printed"):
        model = CNNF(network, iterations=1, ada_relu=ada_relu)
        state = model.unroll(x, return_states=True).states[1]
        y = model(x, iterations=0)  # the y that the gates were set by
        made = generated_from(model, state, y)
        gap = (inner(y, state.output) - inner(made.generated, state.target) - eta(model, made)).abs()  # type: ignore[arg-type]
        f, g = state.gate_inputs[1], made.feedback[1]
        both_negative = (f < 0) & (g < 0)
        assert 0.05 < both_negative.double().mean() < 0.5
        expected = 2 * inner(f * g, both_negative.double())
        if ada_relu == "signed":
            assert gap.max() < EXACT
        else:
            close(gap, expected)
            assert gap.min() > 0.02 > 1e6 * EXACT


def test_eta_of_the_small_net_has_its_biases_where_they_are() -> None:
    """Of the small net's biases only those of FeatureNorm and of the fully connected layers are seen (its convolutions
    carry none): with all of them zero eta is zero, and with the top bias alone it is y·b."""
    torch.manual_seed(2)
    model = small_net(iterations=1).double()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        assert eta(model, model.unroll(x, return_states=True).states[1]).abs().max() == 0
        model.get_submodule("fc2").bias.normal_()
        state = model.unroll(x, return_states=True).states[1]
        close(eta(model, state), state.output @ model.get_submodule("fc2").bias)
        biases, top = gate_biases(model, state)
    assert [model.feedback_layers[i].name for i in biases] == ["relu1", "pool2", "relu3"]
    assert torch.equal(top[0], model.get_submodule("fc2").bias)  # type: ignore[arg-type]
