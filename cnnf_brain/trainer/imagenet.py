"""A training run on ImageNet or images like it, in one process or many, from its recipe to its weights and their card."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnf_brain import results
from cnnf_brain.datasets.image_batches import DiskBatches
from cnnf_brain.datasets.image_index import ImageIndex
from cnnf_brain.images import Preprocessing
from cnnf_brain.io import sha256
from cnnf_brain.model import zoo
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import Card, check_state, is_published, read_card, read_state, units
from cnnf_brain.networks import Network, plan
from cnnf_brain.results import machine
from cnnf_brain.trainer.checkpoint import about, finish, finished, save_weights
from cnnf_brain.trainer.config import MEANS, Command, Recipe
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.evaluation import batches_of, counted_outputs, how_shown
from cnnf_brain.trainer.loop import Hooks, Objective, Run, Trainer, train_mode
from cnnf_brain.trainer.metrics import Accuracy, check_trackers, measure
from cnnf_brain.work import Stop

NO_WEIGHTS = "none"
Units = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of images scaled to [0, 1]


def train(
    recipe: Recipe,
    images: tuple[ImageIndex, ImageIndex],
    output: Path,
    command: Command | str,
    *,
    ranks: Ranks | None = None,
    insist: bool = False,
    stop: Stop | None = None,
) -> dict[str, Any] | None:
    """Train, or continue, or find finished, the run of ``recipe`` in ``output``; its card, None where it was stopped.

    Every rank calls it and does its part; rank 0 writes. ``images``: the training and the validation part (``index_images``).
    ``output`` gets what ``training/imagenet.py`` describes; all ranks see the same one. ``ranks``: the processes of the run
    (``distributed.join``); by default this one, on the CPU. The other arguments and errors are those of ``small.train``; further an
    OSError where there are no such weights, and TooManyBadImages where more images are damaged than the recipe allows.
    """
    check_trackers(recipe.track or ())
    (train, validation), ranks = images, Ranks() if ranks is None else ranks
    command = Command.of(command)
    recipe, own = own_network(fitted(recipe, train))
    with contextlib.nullcontext() if ranks.rank else results.occupied(output):
        start = started_from(recipe.weights, output)
        configuration = {
            **recipe.outcome(),
            **({} if own is None else {"arch": own.name, "code": hashlib.sha256(own.code).hexdigest()}),
            "weights": f"sha256:{start['sha256']}" if "sha256" in start else recipe.weights,
            "data": {"train": train.digest(), "validation": validation.digest()},
        }
        card = finished(output, configuration, recipe.steps, partial(new_network, recipe, own), writes=ranks.rank == 0)
        if card is not None:
            return card
        torch.manual_seed(recipe.seed)
        model, origin = starting_network(recipe) if own is None else (new_network(recipe, own), own.origin)
        hold(model, recipe.hold)
        mean, std = units_of(recipe, own)
        model.to(ranks.device)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        record = about(command.line, configuration, steps=recipe.steps)
        card = {
            "title": recipe.title,
            **record,
            "feedback": model.settings.as_dict(),
            "arch": recipe.arch,
            "start": origin,
            "started_from": start,
            "image_size": recipe.image_size,
            "resize": recipe.resize,
            "mean": mean,
            "std": std,
            "classes_sha256": train.classes_digest(),
            "machine": machine(ranks.device),
            "ranks": ranks.size,
        }
        trainer = trainer_of(recipe, model, images, Run(output, configuration), card, ranks, own)
        words = introduction(recipe, images, card, holds=train_mode(model))
        trainer.begin(record, words, insist=insist, flags=command.flags)
        if not trainer.run(stop):
            return None
        assert trainer.position.validation is not None
        card = with_accuracy(card, trainer.position.validation) | {"training_seconds": round(trainer.position.seconds)}
        if ranks.rank == 0:
            card = finish(output, trainer.descent.outcome, card)
        ranks.wait()
    return card


def trainer_of(
    recipe: Recipe,
    model: CNNF,
    images: tuple[ImageIndex, ImageIndex],
    run: Run,
    card: dict[str, Any],
    ranks: Ranks,
    own: Network | None = None,
) -> Trainer:
    """The training loop of a recipe; ``card`` goes into the weights of the best validation. ``own``: see ``own_network``."""
    shown = Preprocessing(recipe.image_size, *units_of(recipe, own), resize=recipe.resize)
    how = {"batch_size": recipe.batch_size, "workers": recipe.workers, "seed": recipe.seed}
    train, validation = (batches_of(index, shown, ranks, **how) for index in images)
    descent: dict[str, Any] = {"lr": recipe.learning_rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    optimizer: Any = torch.optim.SGD
    if recipe.shard_optimizer and ranks.size > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # not in every build of torch

        optimizer = partial(ZeroRedundancyOptimizer, optimizer_class=torch.optim.SGD)
    return Trainer(
        Objective(model, recipe.losses, amp=recipe.amp, recompute=recipe.checkpoint_iterations),
        optimizer([p for p in model.parameters() if p.requires_grad], **descent),
        train,
        recipe,
        replace(run, rounding={"ranks": ranks.size, **{name: getattr(recipe, name) for name in MEANS}}),
        Hooks(
            lambda network: validate(network, validation, ranks),
            best=lambda network, found: save_weights(run.folder / "best.safetensors", network, with_accuracy(card, found)),
        ),
        ranks,
    )


def units_of(recipe: Recipe, own: Network | None = None) -> Units:
    """Mean and standard deviation of the images that the starting weights, or the user's ``own`` network, take."""
    if own is not None:
        return own.preprocessing.mean, own.preprocessing.std
    if recipe.weights == NO_WEIGHTS:
        return Preprocessing.mean, Preprocessing.std
    card = Card() if is_published(recipe.weights) else read_card(recipe.weights)
    return units(recipe.arch, recipe.weights, card)


def validate(model: CNNF, images: DiskBatches, ranks: Ranks) -> Accuracy:
    """The accuracy over all ``images``, in float32, as the weights will be used, on the model itself."""
    model.eval()
    return measure(lambda x: model.unroll(images.prepare(x)).logits, images.once(), model.iterations, ranks)


def fitted(recipe: Recipe, train: ImageIndex) -> Recipe:
    """The recipe for these images; an error where its weights are not there or it has fewer classes than they."""
    found = len(train.classes)
    if recipe.num_classes is not None and recipe.num_classes < found:
        raise ValueError(f"num_classes {recipe.num_classes}: {train.root} has {found} classes; leave it out")
    weights = recipe.weights
    if weights != NO_WEIGHTS and not is_published(weights) and not Path(weights).is_file():
        raise FileNotFoundError(f"weights {weights}: no such file; give one, {Recipe().weights} or {NO_WEIGHTS}")
    return replace(recipe, num_classes=recipe.num_classes or found)


def own_network(recipe: Recipe) -> tuple[Recipe, Network | None]:
    """The recipe with the feedback of the user's own network (``file.py:function``, see ``load_network``), and that network, a
    CNNF; the recipe as it is, and None, where the network has a name here.

    The function makes a ``CNNF`` and its feedback, of which the recipe sets the iterations alone. For training without feedback
    it may make an ``nn.Sequential``. A ValueError for another one, for other numbers of classes or pixels than the recipe's,
    or grey images.
    """
    if recipe.arch in zoo.ARCHITECTURES:
        return recipe, None
    zoo.check_spec(recipe.arch)
    iterations = recipe.feedback.get("iterations")
    if is_published(recipe.weights):
        raise ValueError(f"weights {recipe.weights}: none are published for {recipe.arch}; give a file, or {NO_WEIGHTS}")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        own = plan(recipe.arch, recipe.weights, iterations=iterations).load()
    if not isinstance(own.module, CNNF if iterations != 0 else CNNF | nn.Sequential):
        expected = "a cnnf_brain.CNNF" + (" or an nn.Sequential" if iterations == 0 else ", which has the feedback")
        raise ValueError(f"{recipe.arch} makes a {type(own.module).__name__}, expected {expected}")
    shown = getattr(own.module, "preprocessing", Preprocessing(recipe.image_size, resize=recipe.resize))
    module = own.module if isinstance(own.module, CNNF) else CNNF(own.module, iterations=0)
    name = zoo.short_spec(recipe.arch)
    origin = f"{name} as its function makes it, weights {recipe.weights}"
    own = replace(own, module=module, preprocessing=shown, name=name, origin=origin)
    if (shown.size, shown.resize, len(shown.mean)) != (recipe.image_size, recipe.resize, 3):
        raise ValueError(
            f"{recipe.arch} takes images as {shown}, and is trained at image_size {recipe.image_size}, resize {recipe.resize}, "
            "in colour; give the same in both"
        )
    if (outputs := counted_outputs(own)) != recipe.num_classes:
        raise ValueError(f"{recipe.arch} has {outputs} outputs, expected {recipe.num_classes}, one for each class")
    return replace(recipe, feedback=module.settings.as_dict()), own


def started_from(weights: str, output: Path) -> dict[str, str]:
    """The weights that training begins with: a name as given, a file by its path from ``output`` and its SHA-256."""
    if not Path(weights).is_file():
        return {"weights": weights}
    return {"weights": os.path.relpath(Path(weights).resolve(), output.resolve()), "sha256": sha256(Path(weights))}


def new_network(recipe: Recipe, own: Network | None = None) -> Any:
    """The layers of the recipe's network, all weights new; or the user's ``own`` network."""
    if own is not None:
        return own.module
    return zoo.sequential(recipe.arch, recipe.num_classes or 1000, recipe.head)


def starting_network(recipe: Recipe) -> tuple[CNNF, str]:
    """The CNNF that training begins with, and where its parts come from in words.

    New layers: all where the recipe's weights are "none", the whole classifier where they are the convolutions alone, the last
    layer where they are for another number of classes. A ValueError or OSError where weights are not there or fit neither way.
    """
    network, weights = new_network(recipe), recipe.weights
    words = f"{recipe.arch} for {recipe.num_classes} classes"
    if weights == NO_WEIGHTS:
        return CNNF(network, **recipe.feedback), f"{words}, all weights new"
    state, fresh = dict(read_state(weights, recipe.arch)), network.state_dict()
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    head = [name for name in fresh if name.startswith(f"{last}.")]
    if not any(name.startswith("classifier.") for name in state):
        new = {name: value for name, value in fresh.items() if name.startswith("classifier.")}
        words += f", convolutions of {weights}, a new classifier on top of them (it holds the convolutions alone)"
    elif any(name in state and state[name].shape != fresh[name].shape for name in head):
        new = {name: fresh[name] for name in head}
        words += f", weights {weights}, a new last layer ({state[head[0]].shape[0]} classes there)"
    else:
        new, words = {}, f"{words}, weights {weights}"
    state |= new
    check_state(state, network, f"weights {weights}")
    network.load_state_dict(state, strict=False)  # checked; old files lack num_batches_tracked
    return CNNF(network, **recipe.feedback), words


def hold(model: CNNF, last: str | None) -> None:
    """Let the layers of ``model`` up to ``last`` keep their weights (None: no layer). A ValueError where none is trained then."""
    if last is None:
        return
    for layer in model.layer_names[: model.index(last) + 1]:
        model.get_submodule(layer).requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"hold {last!r}: no layer above it has weights, so that nothing would be trained; name a lower one")


def introduction(recipe: Recipe, images: tuple[ImageIndex, ImageIndex], card: Mapping[str, Any], *, holds: bool) -> str:
    """What is about to be done; ``holds``: there is batch normalisation."""
    train, validation = images
    portion = recipe.batch_size / card["ranks"] / recipe.accumulate
    lines = [
        f"{recipe.title}: {card['start']}",
        f"{len(train)} training and {len(validation)} validation images of {len(train.classes)} classes from {train.root}, "
        f"{how_shown(recipe.image_size, recipe.resize)}",
        f"{recipe.batch_size} images a step = ranks x portions x images: {card['ranks']} x {recipe.accumulate} x {portion:g}; "
        f"learning rate {recipe.learning_rate:g} for that step, whatever the ranks, {recipe.course}",
    ]
    if recipe.ema is not None:
        lines.append(f"what is validated and kept is a moving average of the weights, of decay {recipe.ema:g}")
    if recipe.hold:
        lines.append(f"layers up to {recipe.hold} keep their weights")
    if holds:
        lines.append("batch normalisation keeps its statistics; its scale and bias are trained")
    return "\n".join([*lines, ""])


def with_accuracy(card: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """``card`` with what a validation found, and after which step."""
    accuracies = {"validation_accuracy": found["top1"], "validation_top5_accuracy": found["top5"]}
    return {**card, "step": found["step"], "n_validation": found["images"], **accuracies}
