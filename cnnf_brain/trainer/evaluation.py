"""Top-1 and top-5 accuracy on the validation images, at every iteration, of any network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from cnnf_brain.checks import differences
from cnnf_brain.datasets.image_batches import Batch, Feed, check_bad, validation_loader
from cnnf_brain.datasets.image_index import ImageIndex
from cnnf_brain.io import plain, write_json
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import is_published, published_entry
from cnnf_brain.networks import SMALL, TORCHVISION, Network, Plan
from cnnf_brain.trainer.distributed import Ranks

EVALUATION = "evaluation.json"
QUESTION = ("sha256", "settings", "data")  # entries of evaluation.json that decide its numbers


@dataclass(frozen=True)
class Accuracy:
    """``top1`` and ``top5``: shares of the ``images`` images whose label comes first, or among the first five, at iterations
    0..N. ``bad``: path -> reason of the images that could not be decoded and are not counted."""

    top1: tuple[float, ...]
    top5: tuple[float, ...]
    images: int
    bad: Mapping[str, str] = field(default_factory=dict)


@torch.no_grad()
def measure(logits: Callable[[Tensor], Tensor], loader: DataLoader[Batch], iterations: int, ranks: Ranks) -> Accuracy:
    """The accuracy over the images of ``loader``, over all ranks.

    Parameters
    ----------
    logits
        uint8 images (B, 3, H, W) on the device of ``ranks`` -> (iterations + 1, B, K).
    loader
        This rank's part of one pass. Nothing is exchanged on the way: ranks may have unequally many images, and each counts
        once.
    """
    feed = Feed(loader)
    counts = torch.zeros(3, iterations + 1, dtype=torch.float64, device=ranks.device)  # top-1, top-5, images
    shown = tqdm(feed, "validation", len(loader), disable=None if ranks.rank == 0 else True, leave=False, file=sys.stderr)
    for batch in shown:
        if not len(batch.labels):
            continue
        images, labels = (part.to(ranks.device, non_blocking=True) for part in (batch.images, batch.labels))
        found = logits(images)
        right = found.topk(min(5, found.shape[-1]), dim=-1).indices == labels[None, :, None]
        counts[0] += right[..., 0].sum(1)
        counts[1] += right.any(-1).sum(1)
        counts[2] += len(labels)
    top1, top5, n = ranks.sum(counts)
    bad = ranks.union(feed.bad)
    return Accuracy(tuple((top1 / n).tolist()), tuple((top5 / n).tolist()), int(n[0]), bad)


def evaluate_network(
    network: Network,
    index: ImageIndex,
    *,
    batch_size: int = 64,
    workers: int = 0,
    max_bad: float = 0.001,
    ranks: Ranks | None = None,
) -> Accuracy:
    """Top-1 and top-5 of ``network`` over the images of ``index``, at iterations 0..N; of a network without feedback at 0 alone.

    Images are shown as the trainer shows them, at ``network.preprocessing``: without ``resize`` the whole middle square, with it
    the middle of the resized image (see ``image_data.decode``). In float32.

    Parameters
    ----------
    index
        The validation part of ImageNet or of another set of classes (``index_validation``).
    batch_size
        Images at a time, over all ranks.
    workers
        Processes that decode, for each rank; 0: this one.
    max_bad
        The share of images that may be damaged; those are not counted.
    ranks
        The processes that share the images; by default this one, on the network's device.

    Raises
    ------
    ValueError
        A network without a classifier, for grey images, or of other classes (``check_classes``).
    TooManyBadImages
        More images are damaged than ``max_bad`` allows.
    """
    ranks = Ranks(device=network.device) if ranks is None else ranks
    shown, module = network.preprocessing, network.module.eval()
    if network.headless:
        raise ValueError(f"{network.name}: the weights {network.weights} have no classifier, so that it names no classes; give "
                         "weights with one")  # fmt: skip
    check_classes(network, index)

    def logits(images: Tensor) -> Tensor:
        x = shown.normalise(images.to(torch.float32).div_(255))
        return module.unroll(x).logits if isinstance(module, CNNF) else module(x)[None]

    loader = validation_loader(index, shown.size, batch_size, rank=ranks.rank, world_size=ranks.size, workers=workers,
                               device=ranks.device, resize=shown.resize)  # fmt: skip
    accuracy = measure(logits, loader, network.iterations, ranks)
    check_bad(accuracy.bad, len(index), max_bad, "validation")
    return accuracy


def check_classes(network: Network | Plan, index: ImageIndex) -> None:
    """A ValueError where a network's top-1 on the images of ``index`` would mean nothing, before any image is read.

    Parameters
    ----------
    network
        A Plan (``networks.plan``): checked by its name, its card and what torchvision says of published weights. Nothing is
        loaded or downloaded; weights without a card pass. A loaded network: its outputs are counted on one black image.

    Raises
    ------
    ValueError
        The network takes grey images, was trained on other classes, or has another number of outputs than ``index`` has classes.
    """
    if isinstance(network, Plan):
        name, grey, outputs = f"{network.spec} [{network.label}]", network.spec == SMALL, planned_outputs(network)
    else:
        name, grey, outputs = f"{network.name} [{network.weights}]", len(network.preprocessing.mean) != 3, None
    if grey:
        raise ValueError(f"{name} takes grey images; top-1 is measured on coloured ones, expected an ImageNet network")
    if network.card.content.get("classes_sha256", index.classes_digest()) != index.classes_digest():
        raise ValueError(
            f"{name} was trained on other classes than those in {index.root}, by the card of its weights: its outputs stand for "
            "those; take images of the classes that it was trained on"
        )
    if isinstance(network, Network):
        outputs = counted_outputs(network)
    if outputs not in (None, len(index.classes)):
        raise ValueError(
            f"{name} has {outputs} outputs and the images in {index.root} have {len(index.classes)} classes: "
            "which output stands for which class is not known; take images of the classes that it was trained on"
        )


def planned_outputs(network: Plan) -> int | None:
    """The number of classes by torchvision or by the card; None where only the weights themselves can say."""
    if network.from_names and network.source is not None and is_published(network.source):
        categories = published_entry(network.spec.removeprefix(TORCHVISION), network.source).meta.get("categories")
        return None if categories is None else len(categories)
    found: int | None = network.card.content.get("configuration", {}).get("num_classes")
    return found


@torch.no_grad()
def counted_outputs(network: Network) -> int:
    """The number of outputs of a loaded network."""
    shown, module = network.preprocessing, network.module.eval()
    x = torch.zeros(1, len(shown.mean), shown.size, shown.size, device=network.device)
    found = module(x, iterations=0) if isinstance(module, CNNF) else module(x)
    return int(found.shape[-1])


def check_evaluation(folder: Path, question: Mapping[str, Any]) -> None:
    """A ValueError where ``folder`` holds the evaluation of other weights, settings or images (QUESTION)."""
    path = folder / EVALUATION
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = differences({name: old[name] for name in QUESTION}, plain({name: question[name] for name in QUESTION}))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or not of this version ({error}); remove it, or choose another folder"
        ) from error
    if changed:
        raise ValueError(
            f"{path} is another evaluation ({'; '.join(changed[:5])}); remove it, or choose another output folder"
        )


def write_evaluation(folder: Path, accuracy: Accuracy, about: Mapping[str, Any]) -> Path:
    """``evaluation.json`` in ``folder``: what was evaluated (``about``, with QUESTION), then the accuracy; its path."""
    path = folder / EVALUATION
    write_json(path, {**about, "images": accuracy.images, "top1": accuracy.top1, "top5": accuracy.top5,
                      "bad_images": dict(accuracy.bad)})  # fmt: skip
    return path


def table(accuracy: Accuracy) -> str:
    """The accuracy as lines of text, a line for each iteration."""
    lines = [f"iteration   top-1   top-5   ({accuracy.images} images)"]
    lines += [
        f"{t:9}{100 * top1:8.2f}{100 * top5:8.2f} %"
        for t, (top1, top5) in enumerate(zip(accuracy.top1, accuracy.top5, strict=True))
    ]
    return "\n".join(lines)
