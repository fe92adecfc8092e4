"""Train VGG-16 on ImageNet, as a CNN-F or, as the control, as the CNN alone (Huang et al. 2020, Appendix B.5.1).

    python training/imagenet.py --data DIR --model cnnf
    torchrun --nproc-per-node 8 training/imagenet.py --data DIR --model cnnf --amp bfloat16 --channels-last
    python training/imagenet.py --data DIR --evaluate --weights runs/imagenet-vgg16-cnnf-2-seed0/model.safetensors
    python training/imagenet.py --data DIR --evaluate --weights IMAGENET1K_V1 --resize 256

The defaults are the paper's schedule: VGG-16 from torchvision's weights, SGD with momentum 0.9, learning rate 0.005 that
decays every 100,000 steps, 128 images a step over all devices, 200,000 steps, horizontal flips alone. "Decreased by 10%"
is --decay-factor 0.9 read literally (the default), and --decay-factor 0.1 where it means what is usual on ImageNet. The
paper states neither iterations, target, step size nor loss weights; --model cnn trains as long without feedback. VGG and
AlexNet have no layers that normalise: their maps, and with them the loss, grow a thousandfold with every iteration and
training diverges, unless each layer is held to its norm of the first pass (--match-layers, here the default). The
reconstruction loss is the mean over the elements; Table 1 prints their sum (--reconstruction-reduction sum).

Data: --data DIR with train/<wnid>/ and val/<wnid>/ (or a flat val/ and the devkit), or with tar shards train-*.tar and
val-*.tar with members <wnid>/<file>. Images are seen once an epoch, in an order that depends on --seed alone. Each is shown as
its whole middle square at --image-size pixels, in training and validation; with --resize 256 its shorter side becomes 256 pixels
first and the middle is cut out of it, as in torchvision's published accuracies. Shards are listed once, until they change.

--evaluate trains nothing: it prints top-1 and top-5 of --weights on the validation images (a val part alone is enough) at
iterations 0..N, and writes evaluation.json where --output is given. Of weights with a card the architecture, feedback,
iterations, image size and resize are those of the card, unless flags say otherwise; published weights are evaluated as a CNN
unless --model cnnf is given. The data must have the classes that the weights were trained on.

Devices: one, or as many as torchrun starts on one machine or several (all see the same --data and --output). --batch-size
and --lr belong to a step of all ranks together: more ranks make the same steps faster. training/imagenet.slurm is an
example that goes on after a preemption. Batch normalisation (vgg*_bn) keeps its statistics: feedback needs it as an affine
map; its scale and bias are trained.

Output (--output, default runs/imagenet-ARCH-MODEL-seedN):
    model.safetensors     the weights after the last step, with their card: for cnnf_brain.vgg16(weights=...) and
                          python -m cnnf_brain.compare --weights ...
    best.safetensors      those of the best validation top-1 accuracy at the last iteration, after at least one step
    report.html           a page that shows the run: accuracy, log, what the run was, what it does not show
    card.json, card.md    command, configuration, starting weights (a file by its path from this folder), commit,
                          versions, time, validation accuracy at every iteration; card.json also the SHA-256 of
                          model.safetensors
    config.json           the configuration, written at the start
    log.jsonl             losses by term and iteration, accuracy (first at step 0, before training), images/s, wait for data,
                          memory, learning rate, gradient
    tensorboard/          the same, where TensorBoard is installed: pip install 'cnnf-brain[train]'
    checkpoints/          the last --keep

The same command again continues where the output folder has a checkpoint: on a CPU with the same numbers of threads and
ranks bit for bit; with another number of ranks on the same images, with other masks of dropout (a warning says so). More
--steps than before continue a run as well. Where the run is finished, model.safetensors is checked against the SHA-256 in
card.json, and restored from the last checkpoint if it is gone or damaged. SIGTERM and Ctrl-C finish the step, save and exit.

Exit codes: 0 finished, 1 error (one line), 2 usage, 75 stopped by a signal and saved: start it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnnf_brain import results
from cnnf_brain.datasets.image_batches import TooManyBadImages
from cnnf_brain.datasets.image_index import ImageIndex, index_images, index_validation
from cnnf_brain.io import sha256, write_json
from cnnf_brain.model.card import Card, read_card
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import is_published, published_file
from cnnf_brain.model.zoo import ARCHITECTURES
from cnnf_brain.networks import place, plan
from cnnf_brain.report import readers
from cnnf_brain.results import commit, machine, versions
from cnnf_brain.trainer.card import WEIGHTS, check_finished, finish, save_weights
from cnnf_brain.trainer.config import check_same, environment
from cnnf_brain.trainer.distributed import Ranks, join
from cnnf_brain.trainer.evaluation import check_classes, check_evaluation, evaluate_network, table, write_evaluation
from cnnf_brain.trainer.flags import (
    FEEDBACK,
    STOPPED,
    add_model_flags,
    evaluated_feedback,
    feedback_settings,
    given_feedback,
    loss_weights,
    positive,
    settle_model_flags,
    weight,
    whole,
)
from cnnf_brain.trainer.loop import NonFiniteLoss, Stop
from cnnf_brain.trainer.recipe import Recipe
from cnnf_brain.trainer.start import NO_WEIGHTS, bare_network, starting_network, train_mode
from cnnf_brain.trainer.stream import StreamTrainer

PAPER = Recipe()
EVALUATES = {"evaluate", "data", "model", *FEEDBACK, "feedback_defaults", "arch", "weights", "image_size", "resize", "batch_size",
             "workers", "max_bad", "limit_validation", "output", "device"}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    command = shlex.join(["python", "training/imagenet.py", *argv])
    try:
        with join(args.device) as ranks, place_for_results(args, ranks):
            return evaluate(args, ranks, command) if args.evaluate else run(args, ranks, command)
    except (ValueError, OSError, NonFiniteLoss, TooManyBadImages) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, ranks: Ranks, command: str) -> int:
    """Data, model, training, result."""
    with in_turn(ranks):
        train, validation = index_images(args.data)
    train, validation = train.spaced(args.limit), validation.spaced(args.limit_validation)
    recipe = recipe_of(args, len(train.classes))
    start = started_from(recipe.weights, args.output)
    configuration = {
        **recipe.outcome(),
        "weights": f"sha256:{start['sha256']}" if "sha256" in start else recipe.weights,
        "data": {"train": train.digest(), "validation": validation.digest()},
    }
    if finished(args.output, configuration, recipe, ranks):
        return 0
    torch.manual_seed(recipe.seed)
    model, origin = starting_network(recipe.arch, recipe.weights, recipe.num_classes, recipe.feedback)
    model.to(ranks.device)
    record = {"command": command, "configuration": configuration, "steps": recipe.steps, "commit": commit(),
              "versions": versions()}  # fmt: skip
    card = {"title": title(recipe), **record, "feedback": model.settings.as_dict(), "arch": recipe.arch, "start": origin,
            "started_from": start, "image_size": recipe.image_size, "resize": recipe.resize,
            "classes_sha256": train.classes_digest(), "machine": machine(ranks.device), "ranks": ranks.size}  # fmt: skip
    trainer = StreamTrainer(
        model, recipe, configuration, args.output, ranks,
        on_best=lambda found: save_weights(args.output / "best.safetensors", model, with_accuracy(card, found)),
    )  # fmt: skip
    found = trainer.resume()
    if args.resume and found is None:
        raise ValueError(f"--resume: {args.output} has no checkpoint; leave --resume out to start there")
    if ranks.rank == 0:
        write_json(args.output / "config.json", {**record, "environment": environment(ranks.device)})
        introduce(args, recipe, ranks, origin, train, validation, found, holds=train_mode(model))
    with Stop() as stop:
        if not trainer.run(train, validation, stop):
            if ranks.rank == 0:
                why = stop.requested.name if stop.requested else "a signal to another rank"
                print(
                    f"stopped by {why} after step {trainer.position.step}, saved; the same command continues",
                    file=sys.stderr,
                )
            return STOPPED
    if ranks.rank == 0:
        assert trainer.position.validation is not None
        card = with_accuracy(card, trainer.position.validation) | {"training_seconds": round(trainer.position.seconds)}
        report(finish(args.output, model, card), args.output / WEIGHTS)
    ranks.wait()
    return 0


def evaluate(args: argparse.Namespace, ranks: Ranks, command: str) -> int:
    """The accuracy of given weights, at every iteration."""
    card = Card() if is_published(args.weights) else read_card(args.weights)
    arch, feedback = args.arch or card.arch or PAPER.arch, evaluated_feedback(args, card)
    planned = plan(arch, args.weights, iterations=feedback.pop("iterations"), feedback=feedback,
                   image_size=args.image_size or card.image_size)  # fmt: skip
    with in_turn(ranks):
        index = index_validation(args.data).spaced(args.limit_validation)
        check_classes(planned, index)  # before weights are downloaded
        network = place(planned.load(), ranks.device)
    shown = replace(network.preprocessing, resize=args.resize or card.resize)
    network = replace(network, preprocessing=shown)
    assert isinstance(network.module, CNNF)
    settings: dict[str, Any] = {"arch": arch, "feedback": {"iterations": 0}}
    if network.iterations:
        settings["feedback"] = network.module.settings.as_dict()
    settings |= {"image_size": shown.size, "resize": shown.resize}
    file = published_file(arch, args.weights) if is_published(args.weights) else Path(args.weights)
    about = {"weights": args.weights, "sha256": sha256(file), "settings": settings, "data": index.digest(), "command": command,
             "commit": commit(), "versions": versions(), "machine": machine(ranks.device)}  # fmt: skip
    if args.output is not None:
        check_evaluation(args.output, about)
    if ranks.rank == 0:
        cut = "whole middle square" if shown.resize is None else f"of the middle, resized to {shown.resize}"
        how = ", ".join(f"{name} {value}" for name, value in settings["feedback"].items())
        print(f"{network.name}, weights {args.weights} ({how}): {len(index)} images of {len(index.classes)} classes from "
              f"{args.data}, at {shown.size} x {shown.size} pixels, {cut}, on {machine(ranks.device)}", flush=True)  # fmt: skip
    accuracy = evaluate_network(network, index, batch_size=args.batch_size, workers=args.workers, max_bad=args.max_bad,
                                ranks=ranks)  # fmt: skip
    if ranks.rank == 0:
        print(table(accuracy))
        if args.output is not None:
            print(f"written: {write_evaluation(args.output, accuracy, about)}")
    return 0


def place_for_results(args: argparse.Namespace, ranks: Ranks) -> AbstractContextManager[None]:
    """Rank 0 makes --output and, for training, holds it alone. The folder is removed again if nothing was written to it."""
    if ranks.rank or args.output is None:
        return contextlib.nullcontext()
    return results.opened(args.output) if args.evaluate else results.occupied(args.output)


@contextlib.contextmanager
def in_turn(ranks: Ranks) -> Any:
    """Rank 0 first, so that the others find in the cache what it has listed and downloaded."""
    if ranks.rank:
        ranks.wait()
    yield
    if ranks.rank == 0:
        ranks.wait()


def started_from(weights: str, output: Path) -> dict[str, str]:
    """The weights that training begins with: a name as given, a file by its path from ``output`` and its SHA-256."""
    if not Path(weights).is_file():
        return {"weights": weights}
    return {"weights": os.path.relpath(Path(weights).resolve(), output.resolve()), "sha256": sha256(Path(weights))}


def recipe_of(args: argparse.Namespace, classes_found: int) -> Recipe:
    """The flags as the one record that the trainer reads."""
    num_classes = args.num_classes or classes_found
    if num_classes < classes_found:
        raise ValueError(f"--num-classes {num_classes}: {args.data} has {classes_found} classes; leave the flag out")
    weights = args.weights
    if weights != NO_WEIGHTS and not is_published(weights) and not Path(weights).is_file():
        raise FileNotFoundError(f"--weights {weights}: no such file; give one, {PAPER.weights} or {NO_WEIGHTS}")
    return Recipe(
        arch=args.arch, weights=weights, feedback=feedback_settings(args),
        losses=loss_weights(args),
        image_size=args.image_size, resize=args.resize, num_classes=num_classes, steps=args.steps, batch_size=args.batch_size,
        learning_rate=args.lr, momentum=args.momentum, weight_decay=args.weight_decay, decay_every=args.decay_every,
        decay_factor=args.decay_factor, clip=args.clip, seed=args.seed, amp=args.amp, accumulate=args.accumulate,
        checkpoint_iterations=args.checkpoint_iterations, channels_last=args.channels_last, compile=args.compile,
        save_every=args.save_every, keep=args.keep, validate_every=args.validate_every, log_every=args.log_every,
        max_bad=args.max_bad, workers=args.workers,
    )  # fmt: skip


def introduce(
    args: argparse.Namespace,
    recipe: Recipe,
    ranks: Ranks,
    origin: str,
    train: ImageIndex,
    validation: ImageIndex,
    found: Path | None,
    *,
    holds: bool,
) -> None:
    """What is about to be done, on standard output."""
    portion = recipe.batch_size / ranks.size / recipe.accumulate
    lines = [
        f"{title(recipe)}: {origin}",
        f"{len(train)} training and {len(validation)} validation images of {len(train.classes)} classes from {args.data}, "
        f"at {recipe.image_size} x {recipe.image_size} pixels"
        f"{', the whole middle square' if recipe.resize is None else f' of the middle, resized to {recipe.resize}'}",
        f"{recipe.batch_size} images a step = {ranks.size} ranks x {recipe.accumulate} portions x {portion:g} images; learning "
        f"rate {recipe.learning_rate:g} for that step, whatever the ranks, x {recipe.decay_factor:g} every {recipe.decay_every}",
        f"{'continuing ' + str(found) if found else 'from the start'}, on {machine(ranks.device)}, output {args.output}",
    ]
    if holds:
        lines.append("batch normalisation keeps its statistics; its scale and bias are trained")
    print("\n".join(lines), flush=True)


def title(recipe: Recipe) -> str:
    """The network and its task in words."""
    n = recipe.feedback["iterations"]
    return f"{recipe.arch} {f'CNN-F-{n}' if n else 'CNN'}, ImageNet ({recipe.num_classes} classes)"


def with_accuracy(card: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """``card`` with what a validation found, and after which step."""
    return {**card, "step": found["step"], "n_validation": found["images"], "validation_accuracy": found["top1"],
            "validation_top5_accuracy": found["top5"]}  # fmt: skip


def finished(output: Path, configuration: dict[str, Any], recipe: Recipe, ranks: Ranks) -> bool:
    """Whether ``output`` holds this very run, finished, its weights checked or restored; a ValueError where it is another."""
    path = output / "card.json"
    if not path.exists():
        return False
    card = json.loads(path.read_text())
    check_same(card["configuration"], configuration, path)
    if card["steps"] < recipe.steps:
        return False
    if card["steps"] > recipe.steps:
        raise ValueError(f"{path} is of {card['steps']} steps, more than --steps {recipe.steps}; choose another --output")
    if ranks.rank == 0:
        with torch.device("meta"):
            network = bare_network(recipe.arch, recipe.num_classes)
        check_finished(output, card, network, lambda state: state["position"]["step"] == card["steps"])
        report(card, output / WEIGHTS)
    return True


def report(card: dict[str, Any], path: Path) -> None:
    """The result on standard output."""
    for t, (top1, top5) in enumerate(zip(card["validation_accuracy"], card["validation_top5_accuracy"], strict=True)):
        print(f"iteration {t}: validation top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %")
    print(f"weights and card: {path}, page: {readers.leave(path.parent)}")


def arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; contradictions are usage errors (exit code 2)."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, count, size = parser.add_argument, positive(int), positive(float)
    add("--data", type=Path, metavar="DIR", required=True, help="train/ and val/, or train-*.tar and val-*.tar")
    add("--evaluate", action="store_true", help="no training: the accuracy of --weights at every iteration")
    add_model_flags(parser, "input, features.4, ...", required=False, match_layers=True)
    add("--arch", choices=ARCHITECTURES, help=f"default {PAPER.arch}")
    add("--weights", default=PAPER.weights, metavar="FILE",
        help=f"a file (convolutions alone: a new classifier on top), {PAPER.weights} (default) or {NO_WEIGHTS}")  # fmt: skip
    add("--image-size", type=count, metavar="PIXELS", help=f"default {PAPER.image_size}")
    add("--resize", type=count, metavar="PIXELS",
        help="shorter side before the middle is cut out (torchvision: 256); default: the whole middle square")  # fmt: skip
    add("--num-classes", type=count, metavar="K", help="default: as many as the data has")
    add("--steps", type=count, default=PAPER.steps, help=f"default {PAPER.steps}")
    add(
        "--batch-size",
        type=count,
        default=PAPER.batch_size,
        help=f"images of a step over all ranks (default {PAPER.batch_size})",
    )
    add("--lr", type=size, default=PAPER.learning_rate, help=f"default {PAPER.learning_rate}")
    add("--momentum", type=weight, default=PAPER.momentum, help=f"default {PAPER.momentum}")
    add("--weight-decay", type=weight, default=PAPER.weight_decay, help="default 0: the paper states none")
    add("--decay-every", type=count, default=PAPER.decay_every, metavar="STEPS", help=f"default {PAPER.decay_every}")
    add("--decay-factor", type=size, default=PAPER.decay_factor,
        help=f'default {PAPER.decay_factor}, "decreased by 10%%" read literally; 0.1 is the other reading')  # fmt: skip
    add("--clip", type=size, metavar="NORM", help="scale gradients above this norm down to it (default: none)")
    add("--seed", type=whole, default=0, help="of new layers, the order of the images, flips and dropout (default 0)")
    add("--amp", choices=["bfloat16"], help="mixed precision in training; validation stays in float32")
    add("--channels-last", action="store_true", help="memory layout that is faster on most devices")
    add("--compile", action="store_true", help="torch.compile")
    add("--accumulate", type=count, default=1, metavar="PORTIONS", help="of a rank's part of the batch, one after another")
    add("--checkpoint-iterations", action="store_true", help="less memory: compute each iteration again for its gradient")
    add(
        "--workers",
        type=whole,
        default=PAPER.workers,
        help=f"processes that decode, for each rank (default {PAPER.workers})",
    )
    add("--max-bad", type=weight, default=PAPER.max_bad, metavar="SHARE",
        help=f"damaged images are skipped, up to this share (default {PAPER.max_bad})")  # fmt: skip
    add("--save-every", type=count, default=PAPER.save_every, metavar="STEPS", help=f"default {PAPER.save_every}")
    add("--keep", type=count, default=PAPER.keep, metavar="K", help=f"checkpoints, the newest (default {PAPER.keep})")
    add(
        "--validate-every", type=count, default=PAPER.validate_every, metavar="STEPS", help=f"default {PAPER.validate_every}"
    )
    add("--log-every", type=count, default=PAPER.log_every, metavar="STEPS", help=f"default {PAPER.log_every}")
    add("--limit", type=count, metavar="N", help="only N of the training images, evenly spaced (to try things out)")
    add("--limit-validation", type=count, metavar="N", help="only N of the validation images, evenly spaced")
    add("--output", type=Path, metavar="DIR",
        help="default runs/imagenet-ARCH-MODEL-seedN; with --evaluate: for evaluation.json, default none")  # fmt: skip
    add("--resume", action="store_true", help="insist on a checkpoint to continue (one is continued in any case)")
    add("--device", default="auto", help="auto (the default): cuda where there is one, else cpu")
    args = parser.parse_args(argv)
    if args.evaluate:
        settle_evaluation(parser, args)
        return args
    settle_model_flags(parser, args)
    args.arch, args.image_size = args.arch or PAPER.arch, args.image_size or PAPER.image_size
    if args.output is None:
        iterations = f"-{args.iterations}" if args.model == "cnnf" else ""
        args.output = Path("runs", f"imagenet-{args.arch}-{args.model}{iterations}-seed{args.seed}")
    return args


def settle_evaluation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """A usage error where --evaluate was given what it does not use."""
    for name, value in vars(args).items():
        if name not in EVALUATES and value != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for training; --evaluate does not train")
    if args.weights == NO_WEIGHTS:
        parser.error("--evaluate measures weights; give --weights a file or a published name")
    if args.model == "cnn" and given_feedback(args):
        parser.error("a CNN has no feedback; give its settings with --model cnnf")


if __name__ == "__main__":
    sys.exit(main())
