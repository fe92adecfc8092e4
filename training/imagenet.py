"""Train VGG-16 on ImageNet, as a CNN-F or, as the control, as the CNN alone (Huang et al. 2020, Appendix B.5.1).

    python training/imagenet.py --data DIR --model cnnf
    torchrun --nproc-per-node 8 training/imagenet.py --data DIR --model cnnf --amp bfloat16 --channels-last

The defaults are the paper's recipe: VGG-16 from torchvision's weights, SGD with momentum 0.9, learning rate 0.005 that
decays every 100,000 steps, 128 images a step over all devices, 200,000 steps, horizontal flips alone. "Decreased by 10%"
is --decay-factor 0.9 read literally (the default), and --decay-factor 0.1 where it means what is usual on ImageNet. The
paper states neither iterations, target, step size nor loss weights; --model cnn trains as long without feedback. VGG and
AlexNet have no layers that normalise: their maps, and with them the loss, grow a thousandfold with every iteration and
training diverges, unless each layer is held to its norm of the first pass (--match-layers, here the default).

Data: --data DIR with train/<wnid>/ and val/<wnid>/ (or a flat val/ and the devkit), or with tar shards train-*.tar and
val-*.tar with members <wnid>/<file>. Images are seen once an epoch, in an order that depends on --seed alone.

Devices: one, or as many as torchrun starts on one machine or several (all see the same --data and --output). --batch-size
and --lr belong to a step of all ranks together: more ranks make the same steps faster. training/imagenet.slurm is an
example that goes on after a preemption. Batch normalisation (vgg*_bn) keeps its statistics: feedback needs it as an affine
map; its scale and bias are trained.

Output (--output, default runs/imagenet-ARCH-MODEL-seedN):
    model.safetensors     the weights after the last step, with their card: for cnnf_brain.vgg16(weights=...) and
                          python -m cnnf_brain.compare --weights ...
    best.safetensors      those of the best validation top-1 accuracy at the last iteration, with their card
    report.html           a page that shows the run: accuracy, log, what the run was, what it does not show
    card.json, card.md    command, configuration, commit, versions, time, validation accuracy at every iteration
    config.json           the configuration, written at the start
    log.jsonl             losses by term and iteration, accuracy, images/s, wait for data, memory, learning rate, gradient
    tensorboard/          the same, where TensorBoard is installed: pip install 'cnnf-brain[train]'
    checkpoints/          the last --keep

The same command again continues where the output folder has a checkpoint: on a CPU with the same numbers of threads and
ranks bit for bit; with another number of ranks on the same images, with other masks of dropout (a warning says so). More
--steps than before continue a run as well. SIGTERM and Ctrl-C finish the step, save and exit.

Exit codes: 0 finished, 1 error (one line), 2 usage, 75 stopped by a signal and saved: start it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from cnnf_brain.files import check_writable, sha256, write_json
from cnnf_brain.model.nets import ARCHITECTURES
from cnnf_brain.model.weights import is_published
from cnnf_brain.provenance import commit, machine, versions
from cnnf_brain.report import page
from cnnf_brain.trainer.card import save_weights, write_card
from cnnf_brain.trainer.config import check_same, environment
from cnnf_brain.trainer.flags import (
    STOPPED,
    add_model_flags,
    feedback_settings,
    loss_weights,
    positive,
    settle_model_flags,
    weight,
    whole,
)
from cnnf_brain.trainer.image_index import ImageIndex, index_images
from cnnf_brain.trainer.loop import NonFiniteLoss, Stop
from cnnf_brain.trainer.ranks import Ranks, join
from cnnf_brain.trainer.recipe import Recipe
from cnnf_brain.trainer.start import NO_WEIGHTS, starting_network, train_mode
from cnnf_brain.trainer.stream import StreamTrainer, TooManyBadImages

PAPER = Recipe()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    try:
        with join(args.device) as ranks, alone(args.output, ranks):
            return run(args, ranks, shlex.join(["python", "training/imagenet.py", *argv]))
    except Timeout:
        error: Exception = OSError(f"another run is writing to {args.output}; choose another --output")
    except (ValueError, OSError, NonFiniteLoss, TooManyBadImages) as caught:
        error = caught
    print(f"error: {error}", file=sys.stderr)
    return 1


def run(args: argparse.Namespace, ranks: Ranks, command: str) -> int:
    """Data, model, training, result."""
    train, validation = indexed(args, ranks)
    recipe = recipe_of(args, len(train.classes))
    configuration = {
        **recipe.outcome(),
        "weights": f"sha256:{sha256(Path(recipe.weights))}" if Path(recipe.weights).is_file() else recipe.weights,
        "data": {"train": train.digest(), "validation": validation.digest()},
    }
    if finished(args.output / "card.json", configuration, recipe.steps):
        return 0
    torch.manual_seed(recipe.seed)
    model, origin = starting_network(recipe.arch, recipe.weights, recipe.num_classes, recipe.feedback)
    model.to(ranks.device)
    record = {"command": command, "configuration": configuration, "steps": recipe.steps, "commit": commit(),
              "versions": versions()}  # fmt: skip
    card = {"title": title(recipe), **record, "feedback": model.settings, "arch": recipe.arch, "start": origin,
            "image_size": recipe.image_size, "machine": machine(ranks.device), "ranks": ranks.size}  # fmt: skip
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
        save_weights(args.output / "model.safetensors", model, card)
        write_card(args.output, card)
        report(card, args.output / "model.safetensors")
    ranks.wait()
    return 0


@contextlib.contextmanager
def alone(output: Path, ranks: Ranks) -> Any:
    """Rank 0 holds ``output``, which can be written, for this run."""
    if ranks.rank:
        yield
        return
    check_writable(output)
    with FileLock(output / ".lock", timeout=0):
        yield


def indexed(args: argparse.Namespace, ranks: Ranks) -> tuple[ImageIndex, ImageIndex]:
    """The images; rank 0 lists them first, so that the others find the members of shards in the cache."""
    if ranks.rank:
        ranks.wait()
    train, validation = index_images(args.data)
    if ranks.rank == 0:
        ranks.wait()
    return limited(train, args.limit), validation


def limited(index: ImageIndex, n: int | None) -> ImageIndex:
    """``n`` images of ``index``, evenly spaced; all where ``n`` is None."""
    if n is None or n >= len(index):
        return index
    rows = np.arange(n) * len(index) // n
    names = ("names", "labels", "sizes", "shard", "offsets")
    return replace(index, **{name: getattr(index, name)[rows] for name in names})


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
        image_size=args.image_size, num_classes=num_classes, steps=args.steps, batch_size=args.batch_size,
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
        f"at {recipe.image_size} x {recipe.image_size} pixels",
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


def finished(path: Path, configuration: dict[str, Any], steps: int) -> bool:
    """Whether ``path`` is the card of this very run; a ValueError where it is that of another."""
    if not path.exists():
        return False
    card = json.loads(path.read_text())
    check_same(card["configuration"], configuration, path)
    if card["steps"] < steps:
        return False
    if card["steps"] > steps:
        raise ValueError(f"{path} is of {card['steps']} steps, more than --steps {steps}; choose another --output")
    print(f"already finished: {path}")
    report(card, path.parent / "model.safetensors")
    return True


def report(card: dict[str, Any], path: Path) -> None:
    """The result on standard output."""
    for t, (top1, top5) in enumerate(zip(card["validation_accuracy"], card["validation_top5_accuracy"], strict=True)):
        print(f"iteration {t}: validation top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %")
    print(f"weights and card: {path}, page: {page.leave(path.parent)}")


def arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; contradictions are usage errors (exit code 2)."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add, count, size = parser.add_argument, positive(int), positive(float)
    add("--data", type=Path, metavar="DIR", required=True, help="train/ and val/, or train-*.tar and val-*.tar")
    add_model_flags(parser, "input, features.4, ...", match_layers=True)
    add("--arch", choices=ARCHITECTURES, default=PAPER.arch, help=f"default {PAPER.arch}")
    add("--weights", default=PAPER.weights, metavar="FILE",
        help=f"a file (convolutions alone: a new classifier on top), {PAPER.weights} (default) or {NO_WEIGHTS}")  # fmt: skip
    add("--image-size", type=count, default=PAPER.image_size, metavar="PIXELS", help=f"default {PAPER.image_size}")
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
    add("--output", type=Path, metavar="DIR", help="default runs/imagenet-ARCH-MODEL-seedN")
    add("--resume", action="store_true", help="insist on a checkpoint to continue (one is continued in any case)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default cuda where there is one")
    args = parser.parse_args(argv)
    settle_model_flags(parser, args)
    if args.output is None:
        iterations = f"-{args.iterations}" if args.model == "cnnf" else ""
        args.output = Path("runs", f"imagenet-{args.arch}-{args.model}{iterations}-seed{args.seed}")
    return args


if __name__ == "__main__":
    sys.exit(main())
