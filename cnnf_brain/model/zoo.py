"""The networks that have names: torchvision's VGGs and AlexNet as CNN-F, the small net of Appendix B.1."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnf_brain.checks import near, offered, unknown
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.layers import FeatureNorm
from cnnf_brain.model.weights import HEADS, HUB, SMALL, Card, check_state, is_published, load_into, read_card, read_weights

VGGS = tuple(f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn"))
ARCHITECTURES = ("alexnet", *VGGS)
SHIPPED = {True: "fashion_cnnf.safetensors", False: "fashion_cnn.safetensors"}  # with feedback, without
PUBLISHED = "IMAGENET1K_V1"
TORCHVISION = "torchvision:"

# Layers that stand for a region where the user names none: those of Brain-Score's own vgg_16 and alexnet entries;
# for the small net its one spatial layer after pooling and its hidden fully connected one.
REGIONS: dict[str, dict[str, str]] = {
    "vgg16": {"V1": "features.16", "V2": "features.16", "V4": "features.16", "IT": "features.23"},
    "alexnet": {"V1": "features.2", "V2": "features.7", "V4": "features.7", "IT": "features.12"},
    SMALL: {"V4": "pool2", "IT": "relu3"},
}


# The feedback of networks without a card: the trainers' own defaults. VGGs and AlexNet have no layers that normalise;
# unless norms are matched, their maps grow a thousandfold with each iteration.
STABLE = {"match_norm": True, "match_layers": True}
SMALL_DEFAULTS = {"match_norm": True}


def from_torchvision(
    arch: str,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    head: str | None = None,
    **feedback: Any,
) -> CNNF:
    """CNN-F of torchvision's ``arch``, with torchvision's names of layers.

    Input: (B, 3, H, W), ImageNet-normalised as torchvision's networks take it. Output: logits (B, num_classes); with 0 iterations
    they are torchvision's.

    Parameters
    ----------
    arch
        ``"alexnet"``, or ``"vgg11"``, ``"vgg13"``, ``"vgg16"``, ``"vgg19"``, each with or without ``"_bn"``.
    weights
        None (random), ``"IMAGENET1K_V1"`` (torchvision's, downloaded once; for VGG-16 also ``"IMAGENET1K_FEATURES"``, the
        convolutions of the original network, which take images with a mean and deviation of their own), or a ``.safetensors``,
        ``.pt`` or ``.pth`` file. Convolutions alone give a headless network, with a HeadlessNetworkWarning: its feedback starts
        from the top feature map.
    num_classes
        Outputs of the classifier; by default as many as ``weights`` have, 1000 without weights.
    head
        ``"torchvision"``, its classifier, or ``"linear"``: the mean over the map of the last convolutions and one matrix
        (``classifier``). By default as on the card inside ``weights``, without a card torchvision's.
    **feedback
        iterations, target, step, match_norm, match_layers, ada_relu, tolerance: see ``CNNF``. What is not given is as on the card
        inside ``weights`` (so that the network is the one that was trained), without a card two iterations with both norms matched.

    Raises
    ------
    ValueError
        Unknown ``arch``; weights with wrong keys or shapes (the first few listed, with the likely cause); a card of another
        architecture.
    FileNotFoundError, OSError
        No such file; weights that cannot be downloaded.

    Examples
    --------
    >>> import torch
    >>> with torch.device("meta"):  # shapes alone, in no memory
    ...     model = from_torchvision("vgg11_bn", num_classes=7, iterations=1)
    >>> model.classifier[6].out_features, model.settings.step
    (7, 1.0)
    """
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    if weights is None:
        return CNNF(sequential(arch, num_classes or 1000, head or HEADS[0]), **{**STABLE, **feedback})
    card = Card() if is_published(weights) else read_card(weights)
    check_arch(card, arch, weights)
    with torch.device("meta"):
        network = sequential(arch, num_classes or 1000, head or card.head)
    return CNNF(load_into(network, weights, arch, any_classes=num_classes is None), **settings(card, STABLE, feedback))


def settings(card: Card, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The feedback's settings for CNNF: as ``given``, else as on the card, else ``defaults``."""
    trained = {} if card.iterations is None else {"iterations": card.iterations, **card.feedback}
    return {**(defaults if not card.feedback else {}), **trained, **given}


def check_arch(card: Card, arch: str, weights: str | Path) -> None:
    """A ValueError where the card is that of another network than ``arch``."""
    if card.arch not in (None, arch):
        raise ValueError(f"weights {weights}: by their card they are of {card.arch}, not of {arch}; name that network")


def sequential(arch: str, num_classes: int, head: str = HEADS[0]) -> nn.Sequential:
    """torchvision's ``arch`` as one nn.Sequential under its own names (its forward also flattens after ``avgpool``).

    ``head``: see ``from_torchvision``; a ValueError for another one.
    """
    from torchvision import models

    if head not in HEADS:
        raise unknown("head", head, HEADS)
    net = models.get_model(arch, weights=None, num_classes=num_classes)
    if head == "linear":
        width = [layer.out_channels for layer in net.features if isinstance(layer, nn.Conv2d)][-1]
        net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(width, num_classes)
    return nn.Sequential(
        OrderedDict(features=net.features, avgpool=net.avgpool, flatten=nn.Flatten(), classifier=net.classifier)
    )


def vgg16(weights: str | Path | None = None, **options: Any) -> CNNF:
    """CNN-F of torchvision's VGG-16: ``from_torchvision("vgg16", weights, **options)``, which says shapes, units and errors.

    Its pooling layers: features.4, .9, .16, .23, .30.

    Examples
    --------
    >>> import torch
    >>> with torch.device("meta"):  # shapes alone, in no memory
    ...     model = vgg16(iterations=2)
    >>> model.layer_names[4], model.settings.match_layers
    ('features.4', True)
    """
    return from_torchvision("vgg16", weights, **options)


def alexnet(weights: str | Path | None = None, **options: Any) -> CNNF:
    """CNN-F of torchvision's AlexNet: ``from_torchvision("alexnet", weights, **options)``, which says shapes, units and errors.

    Examples
    --------
    >>> import torch
    >>> with torch.device("meta"):  # shapes alone, in no memory
    ...     model = alexnet(iterations=1)
    >>> model.layer_names[-1], model.classifier[6].out_features
    ('classifier.6', 1000)
    """
    return from_torchvision("alexnet", weights, **options)


def small_net(
    weights: str | Path | None = None, *, num_classes: int = 10, normalisation: str | None = None, **feedback: Any
) -> CNNF:
    """The MNIST and Fashion-MNIST net of Appendix B.1: input (B, 1, 28, 28) in [-1, 1], output logits (B, num_classes).

    Conv2d(32, 3x3), norm, AdaReLU, Conv2d(64, 3x3), norm, AdaPool, Reshape, FC(128), AdaReLU, FC(10); the paper states
    neither padding (here 0) nor the pooling window (2 x 2). The convolutions carry no bias, the normalisation does (A.4).

    Parameters
    ----------
    weights
        None (random), or a file.
    normalisation
        ``"rms"`` or ``"l2"``, see ``FeatureNorm``; by default as on the card inside ``weights``, without a card rms.
    **feedback
        See ``FeedbackSettings``. What is not given is as on the card, without a card with the reconstruction's norm matched.

    Raises
    ------
    ValueError, FileNotFoundError
        A file that does not fit, or is not there.

    Examples
    --------
    >>> import torch
    >>> small_net(iterations=2)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 10])
    """
    card = Card() if weights is None else read_card(weights)
    check_arch(card, SMALL, str(weights))
    kind = normalisation or card.normalisation or "rms"
    first = {"conv1": nn.Conv2d(1, 32, 3, bias=False), "norm1": FeatureNorm(32, kind), "relu1": nn.ReLU()}
    second = {"conv2": nn.Conv2d(32, 64, 3, bias=False), "norm2": FeatureNorm(64, kind), "pool2": nn.MaxPool2d(2)}
    head = {"fc1": nn.Linear(64 * 12 * 12, 128), "relu3": nn.ReLU(), "fc2": nn.Linear(128, num_classes)}
    network = nn.Sequential(OrderedDict({**first, **second, "flatten": nn.Flatten(), **head}))
    if weights is not None:
        state = read_weights(weights)
        check_state(state, network, f"weights {weights}")
        network.load_state_dict(state)
    return CNNF(network, **settings(card, SMALL_DEFAULTS, feedback))


def default_weights(spec: str, iterations: int | None) -> tuple[str | None, str]:
    """The weights of a network for which none are named, and what they are called."""
    if spec == SMALL:
        return shipped_weights(iterations != 0), "shipped, Fashion-MNIST"
    if spec in ARCHITECTURES or spec.startswith(TORCHVISION):
        return PUBLISHED, PUBLISHED
    return None, "as built"


def short_spec(spec: str) -> str:
    """What names a network, without the folders of a file of code."""
    return spec.replace("\\", "/").rpartition("/")[2]


def check_spec(spec: str) -> None:
    """A ValueError with the nearest names where ``spec`` names no network."""
    if not isinstance(spec, str):
        raise TypeError(f"the network is named by a {type(spec).__name__}, expected a text such as 'vgg16'")
    if spec == SMALL or spec in ARCHITECTURES or ".py:" in spec:
        return
    from torchvision import models  # takes seconds, which names that are known without it need not wait for

    published = models.list_models(module=models)
    name = spec.removeprefix(TORCHVISION)
    if spec.startswith(TORCHVISION):
        if name not in published:
            raise unknown("torchvision model", name, published)
        return
    own = [SMALL, *ARCHITECTURES, *offered("networks")]
    if spec in own:
        return
    if spec.endswith(".py"):
        raise ValueError(f"model {spec!r} names a file; name the function in it too: {spec}:FUNCTION")
    meant = near(spec, [*own, *published], n=1)
    if meant and meant[0] not in own:
        raise ValueError(f"model {spec!r} is not known; did you mean {TORCHVISION}{meant[0]}?")
    raise unknown("model", spec, [*own, f"{TORCHVISION}NAME", "path/to/file.py:function", f"{HUB}OWNER/NAME@COMMIT"])


def shipped_weights(with_feedback: bool) -> str:
    """Path of the shipped small network's weights; a FileNotFoundError where the installation lacks them."""
    path = resources.files("cnnf_brain") / "pretrained" / SHIPPED[with_feedback]
    if not path.is_file():
        todo = "install cnnf-brain again, or give weights of your own"
        raise FileNotFoundError(f"{path}: the shipped weights are missing; {todo}")
    return str(path)
