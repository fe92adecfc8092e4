"""Features by layer and iteration: names, iterations, hooks."""

from __future__ import annotations

import re

import pytest
import tiny
import torch
from torch import nn

from cnnf_brain.activations import check_layers, extract
from cnnf_brain.model.feedback import CNNF, Keep
from cnnf_brain.types import LayerAt


def batch(n: int = 3, size: int = tiny.SIZE) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def feedback_model() -> CNNF:
    return CNNF(tiny.layers(), iterations=2, target="relu1", match_norm=True).eval()


def at(*names: str) -> list[LayerAt]:
    return [LayerAt.parse(name) for name in names]


@pytest.mark.parametrize("model", [feedback_model(), tiny.layers()], ids=["CNNF", "plain"])
def test_an_unknown_layer_lists_the_near_names(model):
    with pytest.raises(ValueError, match=r"'relu22' is not known.*did you mean '?relu2'?.*Known: .*conv1"):
        check_layers(model, at("relu2", "relu22"))


def test_an_iteration_that_is_not_run_says_how_many_are():
    check_layers(feedback_model(), at("relu2@2", "relu2@1:feedback"))
    with pytest.raises(ValueError, match=r"relu2@3: iteration 3 is not run; the network runs 2"):
        check_layers(feedback_model(), at("relu2@3"))


@pytest.mark.parametrize("name", ["conv1@1", "conv1@0:feedback"])
def test_below_the_target_there_is_the_first_pass_alone(name):
    check_layers(feedback_model(), at("conv1@0", "relu1@2", "relu1@1:feedback"))
    with pytest.raises(ValueError, match=rf"{name}: feedback goes down to the target 'relu1' alone"):
        check_layers(feedback_model(), at(name))


@pytest.mark.parametrize("name", ["relu1@1", "relu1@0:feedback"])
def test_a_network_without_feedback_has_iteration_0_only(name):
    check_layers(tiny.layers(), at("relu1"))
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: Sequential runs no feedback"):
        check_layers(tiny.layers(), at(name))


def test_features_are_those_of_a_direct_call():
    model, x = feedback_model(), batch()
    wanted = at("conv1", "pool2@0", "pool2@2", "relu2@1:feedback", "relu1@2:feedback")
    found = extract(model, x, wanted)
    direct = model(x, keep=Keep(wanted)).layers
    plain = tiny.layers().eval()
    assert set(found) == set(wanted)
    for layer in wanted:
        assert torch.equal(found[layer], direct[layer])
    assert torch.equal(found[wanted[0]], plain.conv1(x))
    assert torch.allclose(found[wanted[1]], plain[:5](x), atol=1e-6)
    assert not torch.allclose(found[wanted[1]], found[wanted[2]], atol=1e-3)


def test_a_feedback_map_is_the_gradient_at_iteration_0():
    # The masks are those of the first pass, so its feedback is the logits' vector-Jacobian product with themselves.
    model, x = feedback_model(), batch()
    plain = tiny.layers().eval()
    inner = plain[:2](x).detach().requires_grad_()
    logits = plain[2:](inner)
    (expected,) = torch.autograd.grad(logits, inner, grad_outputs=logits.detach())
    (found,) = extract(model, x, at("relu1@0:feedback")).values()
    assert torch.allclose(found, expected, atol=1e-5)


def test_only_as_many_iterations_run_as_are_asked_for(monkeypatch):
    model, seen = feedback_model(), []
    generate = CNNF.generate
    monkeypatch.setattr(CNNF, "generate", lambda self, *a, **k: (seen.append(1), generate(self, *a, **k))[1])
    extract(model, batch(), at("relu2@0"))
    assert len(seen) == 0
    extract(model, batch(), at("relu2@1"))
    assert len(seen) == 1


class InPlace(nn.Module):
    """A layer that the next one overwrites, one that is called twice, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.back = nn.Conv2d(4, 3, 3, padding=1)
        self.lstm = nn.LSTM(16, 5, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.back(self.relu(self.conv(x))))
        self.lstm(x[:, 0])
        return x


def test_an_in_place_layer_does_not_overwrite_the_one_before():
    torch.manual_seed(0)
    model, x = InPlace().eval(), batch()
    found = extract(model, x, at("conv", "relu"))
    assert torch.equal(found[LayerAt("conv")], model.conv(x))
    assert (found[LayerAt("conv")] < 0).any()
    assert torch.equal(found[LayerAt("relu")], model(x)), "of a module that is called twice, the last output"


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = InPlace().eval()
    extract(model, batch(), at("conv"))
    with pytest.raises(RuntimeError):
        extract(model, torch.zeros(1, 7, 4, 4), at("conv"))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "message"), [("lstm", "output is a tuple, not one tensor"), ("unused", "unused@0: not called")]
)
def test_a_layer_without_one_tensor_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        extract(InPlace().eval(), batch(), at(name))
