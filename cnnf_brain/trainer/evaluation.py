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
from cnnf_brain.files import plain, write_json
from cnnf_brain.model.feedback import CNNF, Keep
from cnnf_brain.networks import Network
from cnnf_brain.trainer.image_data import Batch, Feed, check_bad, validation_loader
from cnnf_brain.trainer.image_index import ImageIndex
from cnnf_brain.trainer.ranks import Ranks

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
        A network without a classifier, for grey images, or with another number of outputs than ``index`` has classes.
    TooManyBadImages
        More images are damaged than ``max_bad`` allows.
    """
    ranks = Ranks(device=network.device) if ranks is None else ranks
    shown, module = network.preprocessing, network.module.eval()
    if network.headless:
        raise ValueError(f"{network.name}: the weights {network.weights} have no classifier, so that it names no classes; give "
                         "weights with one")  # fmt: skip
    if len(shown.mean) != 3:
        raise ValueError(
            f"{network.name} takes grey images; top-1 is measured on coloured ones, expected an ImageNet network"
        )

    def logits(images: Tensor) -> Tensor:
        x = shown.normalise(images.to(torch.float32).div_(255))
        found = module(x, keep=Keep()).logits if isinstance(module, CNNF) else module(x)[None]
        if found.shape[-1] != len(index.classes):
            raise ValueError(
                f"{network.name} has {found.shape[-1]} outputs and the images in {index.root} have {len(index.classes)} classes: "
                "which output stands for which class is not known; take images of the classes that it was trained on"
            )
        return found

    loader = validation_loader(index, shown.size, batch_size, rank=ranks.rank, world_size=ranks.size, workers=workers,
                               device=ranks.device, resize=shown.resize)  # fmt: skip
    accuracy = measure(logits, loader, network.iterations, ranks)
    check_bad(accuracy.bad, len(index), max_bad, "validation")
    return accuracy


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
