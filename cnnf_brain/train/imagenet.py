"""Train VGG-16 on ImageNet, as a CNN-F or, as the control, as the CNN alone (Huang et al. 2020, Appendix B.5.1).

    python training/imagenet.py --data DIR --model cnnf
    torchrun --nproc-per-node 8 training/imagenet.py --data DIR --model cnnf --amp bfloat16 --channels-last
    python training/imagenet.py --data DIR --evaluate --weights runs/imagenet-vgg16-cnnf-2-seed0/model.safetensors
    python training/imagenet.py --data DIR --evaluate --weights IMAGENET1K_V1 --resize 256

Without a checkout: ``cnnf-brain train imagenet``, and ``torchrun ... -m cnnf_brain.train imagenet``.

The defaults are the paper's schedule: VGG-16 from torchvision's weights, SGD with momentum 0.9, learning rate 0.005 that
decays every 100,000 steps, 128 images a step over all devices, 200,000 steps, horizontal flips alone. What the paper leaves
open has its default and its reason in docs/training-imagenet.md. There also: networks of your own (--arch file.py:function),
new classifiers (--head, --hold), --warmup, --decay cosine, --ema and --label-smoothing, --track, flags from a file (--config).

Data: --data DIR with train/<wnid>/ and val/<wnid>/ (or a flat val/ and the devkit), or with tar shards train-*.tar and
val-*.tar with members <wnid>/<file>, or <key>.jpg and <key>.cls (WebDataset). Images are seen once an epoch, in an order that
depends on --seed alone. Each is shown as its whole middle square at --image-size pixels, in training and validation; with
--resize 256 its shorter side becomes 256 pixels first and the middle is cut out of it, as in torchvision's published accuracies.
Shards are listed once, until they change.

--evaluate trains nothing: it prints top-1 and top-5 of --weights on the validation images (a val part alone is enough) at
iterations 0..N, and writes evaluation.json where --output is given. Of weights with a card the architecture, feedback,
iterations, image size and resize are those of the card, unless flags say otherwise; published weights are evaluated as a CNN
unless --model cnnf is given. The data must have the classes that the weights were trained on.

Devices: one, or as many as torchrun starts on one machine or several (all see the same --data and --output). --batch-size
and --lr belong to a step of all ranks together: more ranks make the same steps faster. training/imagenet.slurm is an
example that goes on after a preemption. --amp bfloat16 is refused on a processor without such instructions, where it would take
many times as long; --amp float16, with loss scaling, is for GPUs without them. --shard-optimizer spreads the optimizer's state
over the ranks; the weights are the same.

Output (--output, default runs/imagenet-ARCH-MODEL-seedN):
    model.safetensors     the weights after the last step, with their card: for cnnf_brain.vgg16(weights=...) and
                          python -m cnnf_brain.compare --weights ...
    best.safetensors      those of the best validation top-1 accuracy at the last iteration, after at least one step
    report.html           a page that shows the run: accuracy, log, what the run was, what it does not show
    card.json, card.md    command, configuration, starting weights (a file by its path from this folder), commit,
                          versions, time, validation accuracy at every iteration; card.json also the SHA-256 of
                          model.safetensors
    config.json           the configuration, written at the start
    config.toml           all flags but --output, for --config: it repeats the run
    log.jsonl             losses by term and iteration, accuracy (first at step 0, before training), images/s, wait for data,
                          memory, learning rate, gradient
    tensorboard/          the same, where TensorBoard is installed: pip install 'cnnf-brain[train]'
    checkpoints/          the last --keep, written while the next steps are made; several ranks write a share each

The same command again continues where the output folder has a checkpoint: on a CPU with the same numbers of threads and
ranks bit for bit; with another number of ranks on the same images, with other masks of dropout (a warning says so). More
--steps than before continue a run as well. Where the run is finished, model.safetensors is checked against the SHA-256 in
card.json, and restored from the last checkpoint if it is gone or damaged. SIGTERM and Ctrl-C finish the step, save and exit.

Exit codes: 0 finished, 1 error (one line), 2 usage, 70 a bug, 75 stopped by a signal and saved: start it again.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

from cnnf_brain import cli, results
from cnnf_brain.checks import offered
from cnnf_brain.datasets.image_index import index_images, index_validation
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.model.weights import WEIGHTS
from cnnf_brain.model.zoo import STABLE, short_spec
from cnnf_brain.report import readers
from cnnf_brain.trainer import evaluation, imagenet
from cnnf_brain.trainer.config import Command, LossWeights, Recipe, feedback_and_losses
from cnnf_brain.trainer.distributed import Ranks, join
from cnnf_brain.work import Stop

PROGRAM = "cnnf-brain train imagenet"
LOADING = ("batch_size", "workers", "max_bad")
EVALUATES = ("arch", "weights", "image_size", "resize", *LOADING)  # fields of Recipe that --evaluate uses


def main(argv: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line, called as ``program``; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv, program)
    command = f"{program} {shlex.join(argv)}"

    def work() -> int:
        with join(args.device) as ranks:
            return evaluate(args, ranks, command) if args.evaluate else run(args, ranks, command)

    return cli.run(work, debug=args.debug)


def run(args: argparse.Namespace, ranks: Ranks, command: str) -> int:
    """Data, training, result."""
    wanted = recipe(args)
    folder = output(args, wanted)
    with ranks.in_turn():
        train, validation = index_images(args.data)
    images = train.spaced(args.limit), validation.spaced(args.limit_validation)
    with Stop() as stop:
        how = Command(command, as_toml(args, wanted))
        card = imagenet.train(wanted, images, folder, how, ranks=ranks, insist=args.resume, stop=stop)
    if card is None:
        return cli.STOPPED
    if ranks.rank == 0:
        report(card, folder / WEIGHTS)
    return 0


def recipe(args: argparse.Namespace) -> Recipe:
    """The flags as the one record that the trainer reads."""
    given, feedback = cli.given(args, Recipe), cli.given(args, FeedbackSettings)
    network = feedback_and_losses(args.model, feedback, cli.given(args, LossWeights), STABLE)
    if own_code(args):
        given = {"weights": imagenet.NO_WEIGHTS, **given}
        network["feedback"] = feedback if args.model == "cnnf" else network["feedback"]
    return Recipe(**given, **network)


def as_toml(args: argparse.Namespace, wanted: Recipe) -> str:
    """``config.toml``: all settings of the run but its folder, for ``--config``."""
    kept: dict[str, Any] = {name: getattr(args, name) for name in ("data", "model", "limit", "limit_validation", "device")}
    records: list[Any] = [wanted]
    if args.model == "cnn":
        kept["label_smoothing"] = wanted.losses.smoothing
    elif own_code(args):
        records, kept["iterations"] = [wanted.losses, wanted], wanted.feedback.get("iterations")
    else:
        records = [FeedbackSettings(**wanted.feedback), wanted.losses, wanted]
    return cli.as_toml(*records, **kept)


def own_code(args: argparse.Namespace) -> bool:
    """Whether --arch is code of the user's, or of a package that adds networks."""
    return args.arch is not None and (".py:" in args.arch or args.arch in offered("networks"))


def output(args: argparse.Namespace, wanted: Recipe) -> Path:
    """The folder of the run."""
    if args.output is not None:
        return Path(args.output)
    iterations = f"-{wanted.feedback['iterations']}" if wanted.feedback.get("iterations") else ""
    name = short_spec(wanted.arch).replace(".py:", "-")
    return Path("runs", f"imagenet-{name}-{args.model}{iterations}-seed{wanted.seed}")


def evaluate(args: argparse.Namespace, ranks: Ranks, command: str) -> int:
    """The accuracy of given weights, at every iteration."""
    weights = args.weights or Recipe().weights
    given = cli.given(args, FeedbackSettings)
    planned = evaluation.planned_network(weights, args.arch, args.image_size, given, args.model)
    place = contextlib.nullcontext() if ranks.rank or args.output is None else results.opened(args.output)
    with place:
        with ranks.in_turn():
            index = index_validation(args.data).spaced(args.limit_validation)
            evaluation.check_classes(planned, index)  # before weights are downloaded
            network = evaluation.load_planned(planned, args.resize, ranks)
        record = evaluation.evaluation_record(planned, network, index, command)
        if args.output is not None:
            evaluation.check_evaluation(args.output, record)
        if ranks.rank == 0:
            settings = record["settings"]
            how = ", ".join(f"{name} {value}" for name, value in settings["feedback"].items())
            shown = evaluation.how_shown(settings["image_size"], settings["resize"])
            images = f"{len(index)} images of {len(index.classes)} classes from {args.data}, {shown}"
            print(f"{network.name}, weights {weights} ({how}): {images}, on {record['machine']}", flush=True)
        loading = {name: getattr(Recipe, name) if (value := getattr(args, name)) is None else value for name in LOADING}
        accuracy = evaluation.evaluate_network(network, index, ranks=ranks, **loading)
        if ranks.rank == 0:
            print(evaluation.table(accuracy))
            if args.output is not None:
                print(f"written: {evaluation.write_evaluation(args.output, accuracy, record)}")
    return 0


def report(card: dict[str, Any], path: Path) -> None:
    """The result on standard output."""
    for t, (top1, top5) in enumerate(zip(card["validation_accuracy"], card["validation_top5_accuracy"], strict=True)):
        print(f"iteration {t}: validation top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %")
    print(f"weights and card: {path}, page: {readers.leave(path.parent)}")


def arguments(argv: list[str], program: str = PROGRAM) -> argparse.Namespace:
    """The flags; contradictions are usage errors (exit code 2)."""
    parser = cli.Parser.of(__doc__, program)
    add, count = parser.add_argument, cli.number(int, {"above": 0})
    add("--data", type=Path, metavar="DIR", required=True, help="train/ and val/, or train-*.tar and val-*.tar")
    add("--evaluate", action="store_true", help="no training: the accuracy of --weights at every iteration")
    add("--model", choices=["cnn", "cnnf"], help="required, but for --evaluate")
    cli.add_flags(parser, FeedbackSettings, defaults=STABLE)
    cli.add_flags(parser, LossWeights)
    cli.add_flags(parser, Recipe)
    add("--limit", type=count, metavar="N", help="only N of the training images, evenly spaced (to try things out)")
    add("--limit-validation", type=count, metavar="N", help="only N of the validation images, evenly spaced")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="default runs/imagenet-ARCH-MODEL-seedN; with --evaluate: for evaluation.json, default none",
    )
    add("--resume", action="store_true", help="insist on a checkpoint to continue (one is continued in any case)")
    add("--device", default="auto", help="auto (the default): cuda where there is one, else cpu")
    args = parser.parse_with_config(argv)
    if args.evaluate:
        settle_evaluation(parser, args)
    elif args.model is None:
        parser.error("the following arguments are required: --model")
    elif args.model == "cnn":
        why = "is for --model cnnf: a CNN has no feedback"
        cli.refuse(parser, args, (FeedbackSettings, LossWeights), why, but=("smoothing",))
    elif own_code(args):
        cli.refuse(parser, args, (FeedbackSettings,), "is what the function of --arch sets itself", but=("iterations",))
    return args


def settle_evaluation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """A usage error where --evaluate was given what it does not use."""
    why = "is for training; --evaluate does not train"
    cli.refuse(parser, args, (LossWeights, Recipe), why, but=EVALUATES)
    for flag, value in (("--limit", args.limit), ("--resume", args.resume or None)):
        if value is not None:
            parser.error(f"{flag} {why}")
    if args.weights == imagenet.NO_WEIGHTS:
        parser.error("--evaluate measures weights; give --weights a file or a published name")
    if args.model == "cnn" and cli.given(args, FeedbackSettings):
        parser.error("a CNN has no feedback; give its settings with --model cnnf")
