"""What is shared or replaced: memory that is overwritten without gradients, layers at two places, layers put in later."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from model.drawn import draw_model, draw_network
from torch import nn

from cnnf_brain import CNNF, FeatureNorm, from_torchvision
from cnnf_brain.model.state import feedback_losses

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.mark.parametrize("seed", range(24))
def test_memory_overwritten_without_gradients_changes_no_number(seed: int) -> None:
    """Without gradients gates overwrite maps that nobody keeps; with gradients, or where states are kept, none is."""
    model, x = draw_model(seed, iterations=3, normalised=seed % 4 == 3)
    model.eval()
    names = ["input", *model.layer_names]
    at = [f"{name}@{t}" for t in range(4) for name in names if t == 0 or model.index(name) >= model.start - 1]
    untouched = x.clone()
    with_gradients = model.unroll(x, return_layers=at, return_reconstruction=True)
    with torch.inference_mode():
        runs = [
            model.unroll(x, return_layers=at, return_reconstruction=True),
            model.unroll(x, return_layers=at, return_reconstruction=True, return_states=True),
            *(model.unroll(x, return_layers=[one], return_reconstruction=True) for one in at),
        ]
        logits = model(x)
    assert torch.equal(x, untouched)
    assert torch.equal(logits, with_gradients.logits[-1])
    for run in runs:
        assert torch.equal(run.logits, with_gradients.logits)
        assert torch.equal(run.reconstruction, with_gradients.reconstruction)  # type: ignore[arg-type]
        for key, values in run.layers.items():
            assert torch.equal(values, with_gradients.layers[key]), key


def test_a_layer_that_stands_at_two_places_acts_at_both() -> None:
    """One nn.ReLU (or one convolution) used twice, as many networks do."""
    torch.manual_seed(0)
    relu, conv = nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(conv, relu, conv, relu, nn.Flatten(), nn.Linear(48, 4), relu).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    model = CNNF(network, iterations=1)
    assert model.layer_names == ["0", "1", "2", "3", "4", "5", "6"]
    assert list(model.state_dict()) == list(network.state_dict())
    assert len(list(model.parameters())) == len(list(network.parameters())) == 4
    logits = network(x)
    assert torch.equal(model(x, iterations=0), logits)
    (vjp,) = torch.autograd.grad(logits, x, logits.detach())
    torch.testing.assert_close(model.unroll(x, return_reconstruction=True).reconstruction[1], vjp)


def test_a_layer_that_is_replaced_counts_at_once() -> None:
    """As in fine-tuning: a new classifier on an old network, at the top level and in a nested Sequential."""
    torch.manual_seed(0)
    model = from_torchvision("alexnet", num_classes=3, iterations=1).eval()
    x = torch.randn(1, 3, 64, 64)
    model.get_submodule("classifier")[6] = nn.Linear(4096, 7)
    assert model(x).shape == (1, 7)
    model(x).sum().backward()
    assert model.get_submodule("classifier.6").weight.grad.abs().sum() > 0
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(x)
    model.get_submodule("classifier")[2] = nn.GELU()
    with pytest.raises(ValueError, match=r"layer 'classifier\.2' is a GELU, which has no feedback rule"):
        model(x)


@pytest.mark.parametrize("name", ["input", "step", "feedback_layers", "target", "start", "sweep"])
def test_a_layer_cannot_take_a_name_of_cnnf(name: str) -> None:
    network = nn.Sequential(OrderedDict([(name, nn.Linear(3, 2))]))
    with pytest.raises(ValueError, match=f"layer '{name}': CNNF itself uses that name"):
        CNNF(network)


@pytest.mark.parametrize("seed", range(6))
def test_all_losses_have_finite_gradients_on_random_networks(seed: int) -> None:
    """With padded and overlapping pooling, dropout in training and batch normalisation among the layers."""
    network, shape = draw_network(seed)
    for i, module in enumerate(network.modules()):
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode, module.dilation, module.padding = False, 1, 1 if i % 2 else module.padding
    model = CNNF(network, iterations=2, match_norm=True, step=0.5)
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    try:
        result = model.unroll(x, return_reconstruction=True, return_states=True)
    except RuntimeError:  # the changed pooling gives the first linear layer another size
        pytest.skip("the drawn network does not take padded pooling")
    for term, values in feedback_losses(model, result, torch.tensor([0, 2])).items():
        assert values.isfinite().all(), term
        (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.isfinite().all(), term


def test_the_latent_loss_of_a_padded_pooling_has_a_gradient() -> None:
    """Windows at the border hold fewer elements: -log softmax over those alone, by hand, and a finite gradient."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, 2, 1), nn.Flatten(), nn.Linear(4, 2)).double()
    model = CNNF(network, iterations=1)
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    result = model.unroll(x, return_reconstruction=True, return_states=True)
    (loss,) = feedback_losses(model, result, torch.tensor([0]), terms=("latent",)).values()
    assert loss.tolist() == [0.0, 0.0]  # each of the four windows holds one element of the map: a certain choice
    wide = nn.Sequential(FeatureNorm(1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4, 2)).double()
    model = CNNF(wide, iterations=1)
    nn.init.constant_(model.get_submodule("0").bias, 0.7)  # type: ignore[arg-type]
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    result = model.unroll(x, return_reconstruction=True, return_states=True)
    (loss,) = feedback_losses(model, result, torch.tensor([0]), terms=("latent",)).values()
    # a constant bias makes all elements of a window equally likely; each of the four windows covers four
    torch.testing.assert_close(loss, torch.full((2,), 4.0, dtype=torch.float64).log())
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 2)).double()
    model = CNNF(network, iterations=1)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    result = model.unroll(x, return_reconstruction=True, return_states=True)
    (loss,) = feedback_losses(model, result, torch.tensor([0]), terms=("latent",)).values()
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
