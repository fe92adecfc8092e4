"""The losses of Table 1 and the norm loss against their formulas written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles.feedback import literal, recur
from torch import nn

from cnnf_brain import CNNF, FeatureNorm, LayerAt
from cnnf_brain.model.state import feedback_losses

LABELS = torch.tensor([0, 2, 1])


@pytest.fixture
def model() -> CNNF:
    torch.manual_seed(0)
    layers = nn.Sequential(  # a gate of each kind that sees a bias, and a pooling that sees none
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    return CNNF(layers, iterations=2, step=0.5, match_norm=True)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def found(model: Any, x: Any, **options: Any) -> Any:
    result = model.unroll(x, return_reconstruction=True, return_states=True)
    return result, feedback_losses(model, result, LABELS, **options)


def test_cross_entropy_and_reconstruction(model: CNNF, x: torch.Tensor) -> None:
    result, terms = found(model, x)
    for t in range(3):
        log_p = result.logits[t] - result.logits[t].logsumexp(1, keepdim=True)
        assert torch.isclose(terms["cross_entropy"][t], -(log_p[0, 0] + log_p[1, 2] + log_p[2, 1]) / 3, rtol=1e-12)
        expected = ((result.reconstruction[t] - x) ** 2).sum() / x.numel()
        assert torch.isclose(terms["reconstruction"][t], expected, rtol=1e-12)
    assert terms["reconstruction"][0] == 0


def test_the_reconstruction_as_printed_is_the_sum_over_elements(model: CNNF, x: torch.Tensor) -> None:
    result, terms = found(model, x, reduction="sum")
    for t in range(3):
        images = [sum(gap**2 for gap in (result.reconstruction[t, i] - x[i]).flatten().tolist()) for i in range(3)]
        assert math.isclose(terms["reconstruction"][t].item(), sum(images) / 3, rel_tol=1e-12)
    with pytest.raises(ValueError, match="reduction 'total' is not known"):
        found(model, x, reduction="total")


def test_reconstruction_towards_other_images(model: CNNF, x: torch.Tensor) -> None:
    clean = torch.randn_like(x)
    result, terms = found(model, x, clean=clean)
    assert torch.isclose(terms["reconstruction"][0], ((x - clean) ** 2).mean(), rtol=1e-12)
    assert torch.isclose(terms["reconstruction"][2], ((result.reconstruction[2] - clean) ** 2).mean(), rtol=1e-12)


def test_latent_likelihood_is_bernoulli_at_relu_and_one_hot_in_each_pooling_window(model: CNNF, x: torch.Tensor) -> None:
    result, terms = found(model, x)
    b_pool, b_relu = model.get_parameter("0.bias"), model.get_parameter("2.bias")
    for t, state in enumerate(result.states):
        total, elements = 0.0, 0
        g, at = state.feedback[1], state.latents[1]  # the pooling behind the convolution: 10 x 10 -> 5 x 5
        for image in range(3):
            for c in range(3):
                for i in range(5):
                    for j in range(5):
                        scores = b_pool[c] * g[image, c, i, j].expand(4)  # the bias is the same all over a window
                        assert 0 <= at[image, c, i, j] < 100
                        total -= F.log_softmax(scores, 0)[0].item()
        elements += 3 * 25
        g, z = state.feedback[3], model.feedback_layers[3].bits(state.latents[3])
        odds = b_relu.view(1, -1, 1, 1) * g
        total -= torch.distributions.Bernoulli(logits=odds).log_prob(z.to(odds.dtype)).sum().item()
        elements += g[0].numel()
        assert math.isclose(terms["latent"][t].item(), total / 3 / elements, rel_tol=1e-10)


def normalised_net(kind: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        FeatureNorm(2, kind),
        nn.ReLU(),
        nn.Conv2d(2, 3, 3, bias=False),
        FeatureNorm(3, kind),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def plain_net(kind: str) -> nn.Sequential:  # the pooling straight after ReLU has no f(l) of its own
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3)
    )


@pytest.mark.parametrize(
    ("make", "kind", "pairs"),
    [
        (normalised_net, "rms", {0: 2, 3: 5, 7: 8}),
        (normalised_net, "l2", {0: 2, 3: 5, 7: 8}),
        (plain_net, "", {0: 1, 3: 4}),
    ],
)
def test_the_norm_loss_takes_the_output_of_each_layer_before_its_normalisation(make: Any, kind: str, pairs: Any) -> None:
    """B.1 and A.6: f(l) is what the convolution or matrix gives; behind FeatureNorm its norm would be constant."""
    torch.manual_seed(0)
    network, x = make(kind).double(), torch.randn(2, 1, 10, 10, dtype=torch.float64)
    model = CNNF(network, iterations=2, step=0.5)
    result = model.unroll(x, return_states=True)
    norm = feedback_losses(model, result, LABELS[:2], terms=("norm",))["norm"]
    expected = np.zeros(3)
    for image in x.numpy():
        layers = list(literal(network, (1, 10, 10)).values())
        for t, step in enumerate(recur(layers, image.ravel(), 2, step=0.5)):
            for affine, gate in pairs.items():
                expected[t] += abs(np.linalg.norm(step.a[affine]) - np.linalg.norm(step.g[gate])) / 2
    assert norm.detach().numpy() == pytest.approx(expected, rel=1e-10)


def test_matched_norms_are_a_normalisation_too() -> None:
    """With match_layers ||f(l)|| would be constant over iterations; the loss takes it before it is matched."""
    torch.manual_seed(0)
    model = CNNF(plain_net("").double(), iterations=1, match_layers=True)
    x = torch.randn(2, 1, 10, 10, dtype=torch.float64)
    result = model.unroll(
        x, return_layers=["2@1", *(f"{i}@{t}:feedback" for i in (1, 4) for t in (0, 1))], return_states=True
    )
    outputs = {1: F.conv2d(result.states[1].target, model.get_parameter("0.weight"), model.get_parameter("0.bias"))}
    outputs[4] = F.conv2d(result.layers[LayerAt("2", 1)], model.get_parameter("3.weight"), model.get_parameter("3.bias"))
    gaps = [
        (f.flatten(1).norm(dim=1) - result.layers[LayerAt(str(i), 1, True)].flatten(1).norm(dim=1)).abs().mean()
        for i, f in outputs.items()
    ]
    norm = feedback_losses(model, result, LABELS[:2], terms=("norm",))["norm"]
    assert torch.isclose(norm[1], torch.stack(gaps).sum(), rtol=1e-10)


def test_gradients_reach_every_parameter_but_not_the_target(model: CNNF, x: torch.Tensor) -> None:
    x.requires_grad_()
    _, terms = found(model, x, terms=("reconstruction",))
    assert set(terms) == {"reconstruction"}
    terms["reconstruction"][0].backward(retain_graph=True)  # h - h: the copy that is the target is held
    assert torch.equal(x.grad, torch.zeros_like(x))  # type: ignore[arg-type]
    terms["reconstruction"][2].backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("term", "needs"), [("latent", "states=True"), ("norm", "states=True"), ("reconstruction", "reconstruction=True")]
)
def test_a_result_without_what_a_loss_needs(model: CNNF, x: torch.Tensor, term: str, needs: str) -> None:
    with pytest.raises(ValueError, match=needs):
        feedback_losses(model, model.unroll(x), LABELS, terms=(term,))
