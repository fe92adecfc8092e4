"""Top-1 and top-5 accuracy on ImageNet or images like it, at every iteration, of any network; evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnf_brain.attacks.gradient import checked_logits
from cnnf_brain.checks import differences, running
from cnnf_brain.datasets.image_batches import DiskBatches, check_bad
from cnnf_brain.datasets.image_index import ImageIndex
from cnnf_brain.images import Preprocessing
from cnnf_brain.io import plain, read_json, sha256, write_json
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.model.weights import SMALL, Card, is_published, lacks_classifier, published_entry, published_file, read_card
from cnnf_brain.model.zoo import ARCHITECTURES, STABLE, TORCHVISION
from cnnf_brain.networks import Network, Plan, place, plan
from cnnf_brain.results import commit, machine, versions
from cnnf_brain.trainer.config import Recipe
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.metrics import Accuracy, measure

EVALUATION = "evaluation.json"
QUESTION = ("sha256", "settings", "data")  # entries of evaluation.json that decide its numbers


def how_shown(size: int, resize: int | None) -> str:
    """How images are shown, in words."""
    return f"at {size} x {size} pixels, {'the whole middle square' if resize is None else f'of the middle, resized to {resize}'}"


def evaluated_feedback(given: Mapping[str, Any], card: Card, model: str | None = None) -> dict[str, Any]:
    """The settings to evaluate weights with, as ``CNNF`` takes them: those given, else those of the card, else the defaults.

    Weights of a CNN, or without a card, have feedback only where ``model`` is "cnnf" or iterations are given; with "cnn" they
    have none. A ValueError where settings of feedback were given for a network without iterations.
    """
    defaults, trained = {**FeedbackSettings().as_dict(), **STABLE}, card.iterations or 0
    unsaid = 0 if model == "cnn" else trained or (defaults["iterations"] if model == "cnnf" else 0)
    iterations = given.get("iterations", unsaid)
    if iterations:
        return {**(card.feedback if trained else defaults), **given, "iterations": iterations}
    others = ", ".join(name for name in given if name != "iterations")
    if others:
        raise ValueError(
            f"{others}: settings of feedback, and these weights are evaluated without; give the "
            "iterations, or leave the settings out"
        )
    return {"iterations": 0}


def planned_network(
    weights: str, arch: str | None, image_size: int | None, given: Mapping[str, Any], model: str | None
) -> Plan:
    """What is to be evaluated: as on the card of ``weights`` (a file or a published name), unless told otherwise; nothing is
    downloaded. ``given``, ``model``: see ``evaluated_feedback``."""
    card = Card() if is_published(weights) else read_card(weights)
    if is_published(weights) and lacks_classifier(arch or Recipe().arch, weights):
        raise ValueError(
            f"weights {weights}: they are convolutions without a classifier, and have no top-1; train one first"
        )
    feedback = evaluated_feedback(given, card, model)
    iterations, arch = feedback.pop("iterations"), arch or card.arch or Recipe().arch
    if arch not in ARCHITECTURES:  # own code sets its feedback itself, and its function is checked against the card
        feedback = {name: value for name, value in given.items() if name != "iterations"}
    return plan(arch, weights, iterations=iterations, feedback=feedback, image_size=image_size or card.image_size)


def load_planned(planned: Plan, resize: int | None, ranks: Ranks) -> Network:
    """The network on the device of ``ranks``; images resized as given, else as on the card of its weights."""
    network = place(planned.load(), ranks.device)
    return replace(network, preprocessing=replace(network.preprocessing, resize=resize or planned.card.resize))


def evaluation_record(planned: Plan, network: Network, index: ImageIndex, command: str) -> dict[str, Any]:
    """What an evaluation was, for ``evaluation.json``: weights, settings, images, and how it was made."""
    shown, module, arch, weights = network.preprocessing, network.module, planned.spec, str(planned.weights)
    feedback = module.settings.as_dict() if isinstance(module, CNNF) and network.iterations else {"iterations": 0}
    return {
        "weights": weights,
        "sha256": sha256(published_file(arch, weights) if is_published(weights) else Path(weights)),
        "settings": {"arch": arch, "feedback": feedback, "image_size": shown.size, "resize": shown.resize},
        "data": index.digest(),
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(network.device),
    }


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

    Images are shown in float32 as the trainer shows them, at ``network.preprocessing`` (see ``image_batches.decode``).
    ``batch_size``: images at a time, over all ranks. ``workers``: processes that decode, for each rank; 0: this one. ``max_bad``:
    the share of images that may be damaged; those are not counted. ``ranks``: the processes that share the images; by default this
    one, on the network's device.

    A ValueError for a network without a classifier, for grey images, or of other classes (``check_classes``); TooManyBadImages
    where more images are damaged than ``max_bad`` allows.
    """
    ranks = ranks or Ranks(device=network.device)
    shown, module = network.preprocessing, network.module.eval()
    if network.headless:
        raise ValueError(
            f"{network.name}: the weights {network.weights} have no classifier, so that it names no classes; give weights with one"
        )
    check_classes(network, index)

    def logits(images: Tensor) -> Tensor:
        x = batches.prepare(images)
        if isinstance(module, CNNF):
            with running(network.name, x.shape, ValueError):
                return module.unroll(x).logits
        with running(network.name, x.shape):
            found = module(x)
        return checked_logits(found, len(x))[None]

    batches = batches_of(index, shown, ranks, batch_size=batch_size, workers=workers)
    accuracy = measure(logits, batches.once(), network.iterations, ranks)
    check_bad(accuracy.bad, len(index), max_bad, "validation")
    return accuracy


def batches_of(index: ImageIndex, shown: Preprocessing, ranks: Ranks, **how: Any) -> DiskBatches:
    """The images of a part, this rank's part of each batch; ``how``: ``batch_size``, ``workers``, ``seed``."""
    seen: dict[str, Any] = {"size": shown.size, "resize": shown.resize, "mean": shown.mean, "std": shown.std}
    rank: dict[str, Any] = {"rank": ranks.rank, "world_size": ranks.size, "device": ranks.device}
    return DiskBatches(index=index, **seen, **rank, **how)


def check_classes(network: Network | Plan, index: ImageIndex) -> None:
    """A ValueError, before any image is read, where a network's top-1 on the images of ``index`` would mean nothing: it takes grey
    images, was trained on other classes, or has another number of outputs than ``index`` has classes.

    A Plan (``networks.plan``) is checked by its name, its card and what torchvision says of published weights. Nothing is loaded
    or downloaded; weights without a card pass. The outputs of a loaded network are counted on one black image.
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
    found: int | None = network.card.content.get("configuration", {}).get("num_classes")
    if network.from_names and network.source is not None and is_published(network.source):
        categories = published_entry(network.spec.removeprefix(TORCHVISION), network.source).meta.get("categories")
        found = None if categories is None else len(categories)
    return found


@torch.no_grad()
def counted_outputs(network: Network) -> int:
    """The number of outputs of a loaded network."""
    shown, module = network.preprocessing, network.module.eval()
    x = torch.zeros(1, len(shown.mean), shown.size, shown.size, device=network.device)
    with running(network.name, x.shape):
        found = module(x, iterations=0) if isinstance(module, CNNF) else module(x)
    return checked_logits(found, 1).shape[1]


def check_evaluation(folder: Path, question: Mapping[str, Any]) -> None:
    """A ValueError where ``folder`` holds the evaluation of other weights, settings or images (QUESTION)."""
    path = folder / EVALUATION
    if not path.exists():
        return
    try:
        old = read_json(path)
        changed = differences({name: old[name] for name in QUESTION}, plain({name: question[name] for name in QUESTION}))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or not of this version ({error}); remove it, or choose another folder"
        ) from error
    if changed:
        raise ValueError(
            f"{path} is another evaluation ({'; '.join(changed[:5])}); remove it, or choose another output folder"
        )


def write_evaluation(folder: Path, accuracy: Accuracy, record: Mapping[str, Any]) -> Path:
    """``evaluation.json`` in ``folder``: what was evaluated (``evaluation_record``), then the accuracy; its path."""
    found = {"images": accuracy.images, "top1": accuracy.top1, "top5": accuracy.top5, "bad_images": dict(accuracy.bad)}
    write_json(folder / EVALUATION, {**record, **found})
    return folder / EVALUATION


def table(accuracy: Accuracy) -> str:
    """The accuracy as lines of text, a line for each iteration."""
    shares = enumerate(zip(accuracy.top1, accuracy.top5, strict=True))
    lines = [f"{t:9}{100 * top1:8.2f}{100 * top5:8.2f} %" for t, (top1, top5) in shares]
    return "\n".join([f"iteration   top-1   top-5   ({accuracy.images} images)", *lines])
