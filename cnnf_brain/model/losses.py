"""The losses of Table 1 and the norm loss of Appendix B.1, each at every iteration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnf_brain.checks import unknown
from cnnf_brain.model.cnnf import CNNF, FeedbackResult
from cnnf_brain.model.latents import chosen, gate_biases
from cnnf_brain.model.layers import MaxPool
from cnnf_brain.model.state import State

TERMS = ("cross_entropy", "reconstruction", "latent", "norm")
REDUCTIONS = ("mean", "sum")  # of the reconstruction loss, over the elements of h


def cross_entropy(result: FeedbackResult, labels: Tensor) -> Tensor:
    """-log p(label | h_t, z_t) at every iteration, mean over the batch, (N+1,). ``labels``: (B,) class numbers."""
    logits = result.logits if result.logits.dtype == torch.float64 else result.logits.float()
    return torch.stack([F.cross_entropy(at_t, labels) for at_t in logits])


def reconstruction(result: FeedbackResult, clean: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """||h - h_t||² at every iteration, mean over the batch, (N+1,); 0 at iteration 0 where h is the clean one.

    Parameters
    ----------
    clean
        The target features of other (clean) images, for adversarial training; by default those of the batch itself. They
        are the data to be explained, so that no gradient flows into them.
    reduction
        Over the elements of h: "sum", as Table 1 prints it, or "mean", whose weight does not depend on the image size. For
        h of 784 elements (an MNIST image) the sum is 784 times the mean.

    Raises
    ------
    ValueError
        Another reduction; a result without its reconstructions.
    """
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    if result.reconstruction is None:
        raise ValueError("the reconstruction loss needs a result of unroll(..., return_reconstruction=True)")
    h = (result.reconstruction[0] if clean is None else clean).detach()
    if reduction == "sum":
        return torch.stack([F.mse_loss(made, h, reduction="sum") / len(h) for made in result.reconstruction])
    return torch.stack([F.mse_loss(made, h) for made in result.reconstruction])


def latent(model: CNNF, result: FeedbackResult) -> Tensor:
    """-log p(z_t | y_t) at every iteration, mean over gates' elements and the batch, (N+1,).

    The tractable form of Table 1's Softmax(eta): independent Bernoulli latents at ReLU, one-hot ones in each pooling window
    (pooling straight after ReLU sees no bias and is constant). Gates without a bias say nothing and are left out.
    """
    return torch.stack([_latent(model, state) for state in _states(result)])


def norm(result: FeedbackResult) -> Tensor:
    """Sum over layers of | ||f(l)|| - ||g(l)|| | at every iteration, mean over the batch, (N+1,) (Assumption A.6, B.1).

    f(l) is the output of a convolution or matrix before any normalisation (FeatureNorm, matched norms), g(l) the feedback map at
    the gate above it before it is masked. A gate without such a layer between it and the gate below (pooling straight after
    ReLU) has no f(l) of its own and is left out.
    """
    return torch.stack([_norm(state) for state in _states(result)])


def _norm(state: State) -> Tensor:
    gaps = [
        (norm - torch.linalg.vector_norm(state.feedback[i].flatten(1), dim=1)).abs().mean()
        for i, norm in state.output_norms.items()
    ]
    return torch.stack(gaps).sum() if gaps else state.output.new_zeros(())


def feedback_losses(
    model: CNNF,
    result: FeedbackResult,
    labels: Tensor,
    *,
    clean: Tensor | None = None,
    terms: tuple[str, ...] = TERMS,
    reduction: str = "mean",
) -> dict[str, Tensor]:
    """The terms asked for, each (N+1,). ``result`` comes from ``unroll`` with return_reconstruction and return_states;
    cross-entropy and reconstruction do without the states. ``clean``, ``reduction``: see ``reconstruction``."""
    makers = {
        "cross_entropy": lambda: cross_entropy(result, labels),
        "reconstruction": lambda: reconstruction(result, clean, reduction),
        "latent": lambda: latent(model, result),
        "norm": lambda: norm(result),
    }
    return {term: makers[term]() for term in terms}


def _states(result: FeedbackResult) -> tuple[State, ...]:
    if result.states is None:
        raise ValueError("the latent and norm losses need a result of unroll(..., return_states=True)")
    return result.states


def _latent(model: CNNF, state: State) -> Tensor:
    (biases, _), rules = gate_biases(model, state), model.rules
    total, count = state.output.new_zeros(()), 0
    for i, b in biases.items():
        rule, g, z = rules[i], state.feedback[i], rules[i].bits(state.latents[i])
        if i == model.start or rules[i - 1].is_gate:
            continue  # no affine layer, hence no bias, between this gate and the one below
        if isinstance(rule, MaxPool):
            terms = _window_terms(rule, b, g, z)
        else:
            terms = F.softplus(b * g) - z * (b * g)
        total, count = total + terms.sum() / len(g), count + terms[0].numel()
    return total / max(count, 1)


def _window_terms(rule: MaxPool, b: Tensor, g: Tensor, z: Tensor) -> Tensor:
    """-log softmax over each window of b g↑ at the chosen element, (B, C, h, w)."""
    if rule.module.ceil_mode or rule.dilation != (1, 1):
        raise ValueError(f"{rule.name}: the latent loss of MaxPool2d takes neither ceil_mode nor dilation")

    def windows(x: Tensor) -> Tensor:
        (height, width), (down, right), (top, left) = rule.kernel, rule.stride, rule.padding
        return F.pad(x, (left, left, top, top)).unfold(2, height, down).unfold(3, width, right).flatten(4)

    scores = (windows(b) * g.unsqueeze(-1)).masked_fill(windows(torch.ones_like(b)) == 0, -torch.inf)
    return scores.logsumexp(-1) - chosen(b, z) * g
