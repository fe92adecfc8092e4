"""The losses of Table 1 and the norm loss against their formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnf_brain import CNNF, Keep
from cnnf_brain.model.losses import feedback_losses

LABELS = torch.tensor([0, 2, 1])


@pytest.fixture
def model() -> CNNF:
    torch.manual_seed(0)
    layers = nn.Sequential(  # a gate of each kind that sees a bias, and a pooling that sees none
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()  # fmt: skip
    return CNNF(layers, iterations=2, step=0.5, match_norm=True)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def found(model, x, **options):
    result = model(x, keep=Keep(reconstruction=True, states=True))
    return result, feedback_losses(model, result, LABELS, **options)


def test_cross_entropy_and_reconstruction(model, x):
    result, terms = found(model, x)
    for t in range(3):
        log_p = result.logits[t] - result.logits[t].logsumexp(1, keepdim=True)
        assert torch.isclose(terms["cross_entropy"][t], -(log_p[0, 0] + log_p[1, 2] + log_p[2, 1]) / 3, rtol=1e-12)
        expected = ((result.reconstruction[t] - x) ** 2).sum() / x.numel()
        assert torch.isclose(terms["reconstruction"][t], expected, rtol=1e-12)
    assert terms["reconstruction"][0] == 0


def test_reconstruction_towards_other_images(model, x):
    clean = torch.randn_like(x)
    result, terms = found(model, x, clean=clean)
    assert torch.isclose(terms["reconstruction"][0], ((x - clean) ** 2).mean(), rtol=1e-12)
    assert torch.isclose(terms["reconstruction"][2], ((result.reconstruction[2] - clean) ** 2).mean(), rtol=1e-12)


def test_latent_likelihood_is_bernoulli_at_relu_and_one_hot_in_each_pooling_window(model, x):
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
        g, z = state.feedback[3], model.rules[3].bits(state.latents[3])
        odds = b_relu.view(1, -1, 1, 1) * g
        total -= torch.distributions.Bernoulli(logits=odds).log_prob(z.to(odds.dtype)).sum().item()
        elements += g[0].numel()
        assert math.isclose(terms["latent"][t].item(), total / 3 / elements, rel_tol=1e-10)


def test_norm_loss(model, x):
    result, terms = found(model, x)
    for t, state in enumerate(result.states):
        expected = sum(
            abs(state.gate_inputs[i][b].norm() - state.feedback[i][b].norm()) for i in (1, 3, 4) for b in range(3)
        )
        assert torch.isclose(terms["norm"][t], expected / 3, rtol=1e-12)


def test_gradients_reach_every_parameter_but_not_the_target(model, x):
    x.requires_grad_()
    _, terms = found(model, x, terms=("reconstruction",))
    assert set(terms) == {"reconstruction"}
    terms["reconstruction"][0].backward(retain_graph=True)  # h - h: the copy that is the target is held
    assert torch.equal(x.grad, torch.zeros_like(x))
    terms["reconstruction"][2].backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("term", "needs"), [("latent", "states=True"), ("norm", "states=True"), ("reconstruction", "reconstruction=True")]
)
def test_a_result_without_what_a_loss_needs(model, x, term, needs):
    with pytest.raises(ValueError, match=needs):
        feedback_losses(model, model(x, keep=Keep()), LABELS, terms=(term,))
