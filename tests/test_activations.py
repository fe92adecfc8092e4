"""Features by layer and iteration: names, iterations, hooks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from cnnf_brain import activations
from cnnf_brain.activations import check_layers, extract, features, probe
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.types import LayerAt


def batch(n: int = 3, size: int = tiny.SIZE) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


def feedback_model() -> CNNF:
    return CNNF(tiny.layers(), iterations=2, target="relu1", match_norm=True).eval()


def at(*names: str) -> list[LayerAt]:
    return [LayerAt.parse(name) for name in names]


@pytest.mark.parametrize("model", [feedback_model(), tiny.layers()], ids=["CNNF", "plain"])
def test_an_unknown_layer_lists_the_near_names(model: Any) -> None:
    with pytest.raises(ValueError, match=r"'relu22' is not known.*did you mean '?relu2'?.*Known: .*conv1"):
        check_layers(model, at("relu2", "relu22"))


def test_an_iteration_that_is_not_run_says_how_many_are() -> None:
    check_layers(feedback_model(), at("relu2@2", "relu2@1:feedback"))
    with pytest.raises(ValueError, match=r"relu2@3: iteration 3 is not run; the network runs 2"):
        check_layers(feedback_model(), at("relu2@3"))


@pytest.mark.parametrize("name", ["conv1@1", "conv1@0:feedback"])
def test_below_the_target_there_is_the_first_pass_alone(name: str) -> None:
    check_layers(feedback_model(), at("conv1@0", "relu1@2", "relu1@1:feedback"))
    with pytest.raises(ValueError, match=rf"{name}: feedback goes down to the target 'relu1' alone"):
        check_layers(feedback_model(), at(name))


@pytest.mark.parametrize("name", ["relu1@1", "relu1@0:feedback"])
def test_a_network_without_feedback_has_iteration_0_only(name: str) -> None:
    check_layers(tiny.layers(), at("relu1"))
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: Sequential runs no feedback"):
        check_layers(tiny.layers(), at(name))


def test_features_are_those_of_a_direct_call() -> None:
    model, x = feedback_model(), batch()
    wanted = at("conv1", "pool2@0", "pool2@2", "relu2@1:feedback", "relu1@2:feedback")
    found = extract(model, x, wanted)
    direct = model.unroll(x, return_layers=wanted).layers
    plain = tiny.layers().eval()
    assert set(found) == set(wanted)
    for layer in wanted:
        assert torch.equal(found[layer], direct[layer])
    assert torch.equal(found[wanted[0]], plain.conv1(x))
    assert torch.allclose(found[wanted[1]], plain[:5](x), atol=1e-6)
    assert not torch.allclose(found[wanted[1]], found[wanted[2]], atol=1e-3)


def test_a_feedback_map_is_the_gradient_at_iteration_0() -> None:
    # The masks are those of the first pass, so its feedback is the logits' vector-Jacobian product with themselves.
    model, x = feedback_model(), batch()
    plain = tiny.layers().eval()
    inner = plain[:2](x).detach().requires_grad_()
    logits = plain[2:](inner)
    (expected,) = torch.autograd.grad(logits, inner, grad_outputs=logits.detach())
    (found,) = extract(model, x, at("relu1@0:feedback")).values()
    assert torch.allclose(found, expected, atol=1e-5)


def test_only_as_many_iterations_run_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = feedback_model(), []
    generate = CNNF.generate
    monkeypatch.setattr(CNNF, "generate", lambda self, *a, **k: (seen.append(1), generate(self, *a, **k))[1])  # type: ignore[func-returns-value]
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


def test_an_in_place_layer_does_not_overwrite_the_one_before() -> None:
    torch.manual_seed(0)
    model, x = InPlace().eval(), batch()
    found = extract(model, x, at("conv", "relu"))
    assert torch.equal(found[LayerAt("conv")], model.conv(x))
    assert (found[LayerAt("conv")] < 0).any()
    assert torch.equal(found[LayerAt("relu")], model(x)), "of a module that is called twice, the last output"


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    model = InPlace().eval()
    extract(model, batch(), at("conv"))
    with pytest.raises(RuntimeError):
        extract(model, torch.zeros(1, 7, 4, 4), at("conv"))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "message"), [("lstm", "output is a tuple, not one tensor"), ("unused", "unused@0: not called")]
)
def test_a_layer_without_one_tensor_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(InPlace().eval(), batch(), at(name))


# Whether row i belongs to image i


class TokensFirst(nn.Module):
    """As transformers without batch_first: (tokens, images, features)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.tokens, self.swapped = nn.Conv2d(3, 5, 4, 4), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.tokens(self.patches(x).flatten(2).permute(2, 0, 1))
        return self.swapped(y.transpose(0, 1))


class Noisy(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.calls, self.conv, self.out = how, 0, nn.Conv2d(3, 5, 3), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        self.calls += 1
        if self.how == "noise":
            y = y + 0.1 * torch.randn_like(y)
        elif self.how == "state":
            y = y * self.calls
        elif self.how == "statistics":
            y = (y - y.mean((0, 2, 3), keepdim=True)) / y.std((0, 2, 3), keepdim=True)
        elif self.how == "order":
            y = y + torch.arange(len(y)).view(-1, 1, 1, 1)
        return self.out(y)


def made(module: nn.Module) -> Network:
    return Network(module.eval(), Preprocessing(tiny.SIZE), name="mine")


def test_a_layer_with_the_tokens_first_is_refused_also_where_tokens_are_as_many_as_images() -> None:
    network = made(TokensFirst())
    assert probe(network, tiny.images(8), at("swapped")).counts == {LayerAt("swapped"): 80}
    with pytest.raises(
        ValueError, match=r"mine tokens@0: .*shape \(16, 4, 5\) for 4 images; expected the images along the first"
    ):
        probe(network, tiny.images(8), at("tokens"))
    equal = Network(network.module, Preprocessing(8), name="mine")  # 4 tokens, and 4 images are tried first
    with pytest.raises(ValueError, match=r"shape \(4, 1, 5\) for 1 images"):
        probe(equal, tiny.images(8), at("tokens"))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("noise", "not deterministic"),
        ("state", "not deterministic"),
        ("statistics", "depend on the other images of its batch"),
        ("order", "depend on the other images of its batch"),
    ],
)
def test_rows_that_depend_on_anything_but_their_image_are_refused(how: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        probe(made(Noisy(how)), tiny.images(8), at("out"))
    probe(made(Noisy("nothing")), tiny.images(8), at("out"))


def test_a_module_that_stays_in_training_mode_is_named() -> None:
    class Stays(nn.Dropout):
        def train(self, mode: bool = True) -> nn.Dropout:  # type: ignore[override]
            return super().train(True)

    network = made(nn.Sequential(nn.Conv2d(3, 4, 3), Stays(0.5)))
    with pytest.raises(ValueError, match=r"mine: 1 stays in training mode after eval\(\); its features would be random"):
        probe(network, tiny.images(8), at("0"))


def test_listing_the_layers_changes_no_statistics() -> None:
    network = made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    network.module.train()
    activations.list_layers(network)
    assert network.module.state_dict()["1.num_batches_tracked"] == 0


def test_fewer_images_than_are_tried() -> None:
    assert probe(tiny.network(), tiny.images(1), at("fc@2")).counts == {LayerAt("fc", 2): 5}


def test_overflow_is_found_on_the_first_images_not_only_on_the_first() -> None:
    network = tiny.network(iterations=0)
    dark = torch.zeros(4, 3, tiny.SIZE, tiny.SIZE)
    dark[3] = 1e38
    with pytest.raises(ValueError, match="features are not finite"):
        features(network, dark * 10, at("conv1"))


def test_growth_over_the_first_pass_is_told() -> None:
    loose = tiny.network(match_norm=False)
    with torch.no_grad():
        loose.module.conv1.weight *= 30
    batch = torch.stack([loose.preprocessing(tiny.images(8).decode(i)) for i in range(activations.PROBED)])
    wanted = at("relu2@0", "relu2@1", "relu2@2")
    with torch.no_grad():
        maps = loose.module.unroll(batch, return_layers=wanted).layers
    size = [float(maps[one].square().mean().sqrt()) for one in wanted]
    expected = {
        one: grown / size[0] for one, grown in zip(wanted, size, strict=True) if grown > activations.GROWTH * size[0]
    }
    assert expected
    assert probe(loose, tiny.images(8), wanted).growth == pytest.approx(expected, rel=1e-3)
    assert probe(tiny.network(match_layers=True), tiny.images(8), at("relu2@2")).growth == {}


def test_feedback_that_amplifies_rounding_is_not_taken_for_a_dependence_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of iteration 1 differ between batch sizes as those of a large untrained network do; the first pass agrees."""
    network, stimuli = tiny.network(), tiny.images(4)
    honest = activations.features

    def rounded(network: Any, batch: Any, layers: Any) -> Any:
        return {
            at: rows * (1 + 0.05 * (len(batch) == 3) * bool(at.iteration))
            for at, rows in honest(network, batch, layers).items()
        }

    monkeypatch.setattr(activations, "features", rounded)
    found = activations.probe(network, stimuli, [LayerAt("relu1", 1)])
    assert found.counts.keys() == {LayerAt("relu1", 1)}
