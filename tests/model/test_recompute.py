"""Recomputed iterations: the same values and gradients as the plain loop, with less held between the passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cnnf_brain import CNNF
from cnnf_brain.model import cnnf
from cnnf_brain.model.cnnf import recomputed


def network(iterations: int = 3, **options: Any) -> CNNF:
    torch.manual_seed(0)
    below = (nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU())
    above = (nn.MaxPool2d(3, 2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(6 * 4 * 4, 7))
    return CNNF(nn.Sequential(*below, *above), iterations=iterations, **options).double()


def objective(result: Any) -> torch.Tensor:
    """Weighs every number of the result differently."""
    logits, made = result.logits, result.reconstruction
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum() + (
        made.square() * torch.linspace(0, 1, made.numel()).view_as(made)
    ).sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"step": 0.4, "match_norm": True},
        {"target": "2"},
        {"iterations": 0},
        {"ada_relu": "printed"},
        {"match_layers": True},
    ],
)
def test_values_and_gradients_are_those_of_the_plain_loop(options: Any) -> None:
    model = network(**options).train()
    x = torch.randn(3, 3, 18, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outcomes = []
    for run in (lambda: model.unroll(x, return_reconstruction=True), lambda: recomputed(model, x)):
        torch.manual_seed(2)  # the dropout mask
        result = run()  # type: ignore[no-untyped-call]
        gradients = torch.autograd.grad(objective(result), list(model.parameters()))
        outcomes.append((result.logits, result.reconstruction, *gradients))
    assert all(gradient.abs().max() > 0 for gradient in outcomes[0][2:])
    for plain, again in zip(*outcomes, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)


def held(run: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the tensors that are held of the forward pass: by autograd, and by checkpointing as its inputs."""
    storages = {}

    def note(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = (value.untyped_storage().nbytes(), value)  # kept, so not reused
        elif isinstance(value, dict | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                note(part)
        return value

    def noted(function: Any, *inputs: Any, **options: Any) -> Any:
        note(inputs)
        return checkpoint(function, *inputs, **options)

    monkeypatch.setattr(cnnf, "checkpoint", noted)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    assert result.logits.requires_grad
    return sum(size for size, _ in storages.values())


def test_less_is_held_and_it_hardly_grows_with_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 3, 18, 18, dtype=torch.float64)
    runs = (lambda m: m.unroll(x, return_reconstruction=True)), (lambda m: recomputed(m, x))
    plain, again = ([held(lambda n=n, run=run: run(network(n)), monkeypatch) for n in (1, 4)] for run in runs)
    assert plain[1] > 2 * plain[0]
    assert again[1] - again[0] < 0.3 * (plain[1] - plain[0])


def test_a_pass_is_computed_again_in_two_parts_the_upper_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the maps of one part alone are held at once."""
    parts: list[range] = []
    climb = CNNF.climb

    def noted(self: CNNF, x: torch.Tensor, part: range, *rest: Any) -> torch.Tensor:
        parts.append(part)
        return climb(self, x, part, *rest)

    monkeypatch.setattr(CNNF, "climb", noted)
    result = recomputed(network(0), torch.randn(2, 3, 18, 18, dtype=torch.float64))
    lower, upper = parts
    assert (lower, upper) == (range(3), range(3, 9))  # below and above the first pooling
    result.logits.sum().backward()
    assert parts[2:] == [upper, lower]


def test_early_stopping_is_refused() -> None:
    with pytest.raises(ValueError, match="set tolerance to None"):
        recomputed(network(tolerance=0.1), torch.zeros(1, 3, 18, 18, dtype=torch.float64))
