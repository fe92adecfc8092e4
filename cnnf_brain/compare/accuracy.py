"""The top-1 accuracy of a comparison's networks: measured on validation images, else as the card or torchvision says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cnnf_brain.datasets.image_index import ImageIndex, index_validation
from cnnf_brain.model.weights import is_published, published_entry
from cnnf_brain.model.zoo import TORCHVISION
from cnnf_brain.networks import CHANGED, Network, Plan
from cnnf_brain.trainer.evaluation import check_classes, evaluate_network

PUBLISHED_ON = "ImageNet-1K"


@dataclass(frozen=True)
class Accuracy:
    """Top-1 (a share) of a network at one iteration; ``source`` says where the number comes from."""

    network: str
    weights: str
    feedback: str
    iteration: int
    top1: float
    source: str


def validation_images(folder: str | None) -> ImageIndex | None:
    """The images of the validation part of a folder; None where none is named. Raises what ``index_validation`` raises."""
    return None if folder is None else index_validation(Path(folder))


def check(networks: Iterable[Network | Plan], index: ImageIndex | None) -> None:
    """A ValueError where the accuracy of one of ``networks`` cannot be measured on ``index``; nothing for None.

    Call it with plans before anything is downloaded and with the loaded networks before long work: only these show the number of
    classes of weights without a card. A headless network passes; it has no accuracy. Raises what ``check_classes`` raises.
    """
    for network in networks:
        headless = isinstance(network, Network) and network.headless
        if index is not None and not headless:
            check_classes(network, index)


def of(network: Network, index: ImageIndex | None, batch_size: int = 8) -> list[Accuracy]:
    """The accuracy of a network at each iteration that it runs; nothing where it is not known.

    A card's numbers are taken only where the network runs as it was trained, torchvision's at the image size that it states.
    """
    if index is not None and not network.headless:
        shown, trained = network.preprocessing, network.card
        if trained.image_size == shown.size:
            shown = replace(shown, resize=trained.resize)  # as the trainer validates
        found = evaluate_network(replace(network, preprocessing=shown), index, batch_size=batch_size)
        return _rows(network, found.top1, f"measured on {found.images} validation images of {index.root.name}")
    card = network.card
    if card.top1 and network.feedback != CHANGED and card.image_size in (None, network.preprocessing.size):
        n = card.content.get("n_validation", "its")
        return _rows(network, card.top1[: network.iterations + 1], f"card of {network.weights}: {n} validation images")
    return _published(network)


def _published(network: Network) -> list[Accuracy]:
    """torchvision's own number, for the first pass."""
    if not (network.origin and is_published(network.weights)):  # a module in memory has no published number
        return []
    arch = network.name.removeprefix(TORCHVISION).split()[0]
    entry = published_entry(arch, network.weights)
    share = entry.meta.get("_metrics", {}).get(PUBLISHED_ON, {}).get("acc@1")
    shown = entry.transforms()
    if share is None or math.isnan(share) or shown.crop_size[0] != network.preprocessing.size:
        return []
    how = f"torchvision: {PUBLISHED_ON} validation, shorter side {shown.resize_size[0]}, centre crop {shown.crop_size[0]}"
    return _rows(network, (share / 100,), how)


def _rows(network: Network, top1: tuple[float, ...], source: str) -> list[Accuracy]:
    return [Accuracy(network.title, network.weights, network.feedback, t, share, source) for t, share in enumerate(top1)]
