"""Train the small net of Appendix B.1 (Huang et al. 2020), as a CNN or a CNN-F, on MNIST or Fashion-MNIST.

    python training/mnist.py --dataset fashion --model cnn
    python training/mnist.py --dataset fashion --model cnnf --iterations 2 --seeds 0 1 2
    python training/mnist.py --dataset mnist --model cnnf --iterations 5 --adversarial augment --attack pgd7 --epsilon 0.3

Without a checkout: ``cnnf-brain train small`` in place of ``python training/mnist.py``.

The defaults are the paper's standard training: Adam, learning rate 1e-3, weight decay 5e-4, 30 epochs, images in
[-1, 1], reconstruction loss at 0.1. With --adversarial, 90 epochs at 1e-4 on images that FGSM or PGD changes against the
first pass of the weights of each step, alone (only) or beside the clean ones (augment); in both, the reconstruction is of
the clean image. Epsilon and the attack's step size are for images in [0, 1]. What the
paper leaves open (batch size, target layer, step size, matching of norms) has its default and its reason in
docs/training-small.md. The reconstruction loss is the mean over the elements; Table 1 prints their sum, which
--reconstruction-reduction sum takes.

Data: four IDX files, gzipped or not, in --data DIR; without --data in the cache folder, in Debian's package
dataset-fashion-mnist, else downloaded by torchvision. A twelfth of the training images (5,000) is held out for
validation. Nothing is chosen during a run: the weights are those of the last epoch. The test images are used once, at
the end, on the weights as they are stored.

--seeds trains the runs that are missing, one after another, each in a folder of its own (--output DIR: DIR/seedN).

Output (--output, default runs/DATASET-MODEL-seedN):
    model.safetensors     the weights; their card is in the metadata
    report.html           a page that shows the run: accuracy, log, what the run was, what it does not show
    card.json, card.md    command, seed, commit, data hash, versions, time, accuracy at every iteration; card.json
                          also the SHA-256 of model.safetensors
    config.json           the configuration, written at the start
    config.toml           all flags but --output, for --config FILE.toml: it repeats the run
    log.jsonl             for each epoch: losses by term and iteration, validation accuracy at every iteration
    checkpoints/          the last three

The same command again continues where the output folder has a checkpoint, exactly (on a CPU with the same number of
threads bit for bit). Where the run is finished it checks model.safetensors against the SHA-256 in card.json, and
restores the file from the last checkpoint if it is gone or damaged. SIGTERM and Ctrl-C finish the step, save and exit.

Exit codes: 0 finished, 1 error (one line), 2 usage, 70 a bug, 75 stopped by a signal and saved: start it again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from cnnf_brain import cli
from cnnf_brain.datasets import mnist
from cnnf_brain.model.settings import FeedbackSettings
from cnnf_brain.model.weights import WEIGHTS
from cnnf_brain.model.zoo import SMALL_DEFAULTS
from cnnf_brain.report import readers
from cnnf_brain.trainer import small
from cnnf_brain.trainer.config import Command, LossWeights, feedback_and_losses
from cnnf_brain.work import Stop

PROGRAM = "cnnf-brain train small"


def main(argv: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line, called as ``program``; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv, program)
    command = f"{program} {shlex.join(argv)}"
    return cli.run(lambda: train(args, command), debug=args.debug)


def train(args: argparse.Namespace, command: str) -> int:
    """The runs of all seeds."""
    with Stop() as stop:
        for seed in [args.seed or 0] if args.seeds is None else dict.fromkeys(args.seeds):
            run = settings(args, seed)
            folder = output(args, run)
            how = Command(command, as_toml(args, run))
            card = small.train(run, folder, how, folder=args.data, device=args.device, insist=args.resume, stop=stop)
            if card is None:
                return cli.STOPPED
            report(card, folder / WEIGHTS)
    return 0


def settings(args: argparse.Namespace, seed: int) -> small.Settings:
    """The run of one seed."""
    feedback, losses = cli.given(args, FeedbackSettings), cli.given(args, LossWeights)
    network = feedback_and_losses(args.model, feedback, losses, SMALL_DEFAULTS)
    if args.normalisation:
        network["feedback"]["normalisation"] = args.normalisation
    adversary = small.Adversary(**{**cli.given(args, small.Adversary), "seed": seed}) if args.mode else None
    schedule = small.ADVERSARIAL if adversary else small.STANDARD
    given = {**schedule, **cli.given(args, small.Settings), "dataset": args.dataset, "seed": seed}
    return small.Settings(**{**given, **network, "adversary": adversary})


def as_toml(args: argparse.Namespace, run: small.Settings) -> str:
    """``config.toml``: all settings of one seed's run but its folder, for ``--config``."""
    kept: dict[str, Any] = {name: getattr(args, name) for name in ("dataset", "data", "model", "normalisation", "device")}
    records: list[Any] = [run, *([run.adversary] if run.adversary else [])]
    if args.model == "cnn":
        kept["label_smoothing"] = run.losses.smoothing
    else:
        feedback = {name: value for name, value in run.feedback.items() if name != "normalisation"}
        records += [FeedbackSettings(**feedback), run.losses]
    return cli.as_toml(*records, **kept, seed=run.seed)


def output(args: argparse.Namespace, run: small.Settings) -> Path:
    """The folder of one seed's run."""
    if args.output is not None:
        return Path(args.output, "" if args.seeds is None else f"seed{run.seed}")
    iterations = f"-{run.feedback['iterations']}" if args.model == "cnnf" else ""
    made = run.adversary
    adversarial = f"-{made.mode}-{made.attack}-{made.epsilon:g}" if made else ""
    return Path("runs", f"{args.dataset}-{args.model}{iterations}{adversarial}-seed{run.seed}")


def report(card: dict[str, Any], path: Path) -> None:
    """The result on standard output."""
    for t, (valid, test) in enumerate(zip(card["validation_accuracy"], card["test_accuracy"], strict=True)):
        print(f"iteration {t}: validation accuracy {100 * valid:.2f} %, test accuracy {100 * test:.2f} %")
    print(f"weights and card: {path}, page: {readers.leave(path.parent)}")


def arguments(argv: list[str], program: str = PROGRAM) -> argparse.Namespace:
    """The flags; contradictions are usage errors (exit code 2)."""
    parser = cli.Parser.of(__doc__, program)
    add, whole = parser.add_argument, cli.number(int, {"least": 0})
    add("--dataset", choices=sorted(mnist.TITLES), required=True)
    add("--data", type=Path, metavar="DIR", help="folder of the IDX files; nothing else is tried then")
    add("--model", choices=["cnn", "cnnf"], required=True)
    cli.add_flags(parser, FeedbackSettings, defaults=SMALL_DEFAULTS)
    add("--normalisation", choices=["rms", "l2"], help="of the maps (default rms; l2 as printed in A.4)")
    cli.add_flags(parser, LossWeights)
    cli.add_flags(parser, small.Adversary, defaults={"mode": None})
    hardened = {name: f"{small.STANDARD[name]:g}, with --adversarial {value:g}" for name, value in small.ADVERSARIAL.items()}
    cli.add_flags(parser, small.Settings, defaults=hardened)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=whole, help="of weights, order of the images and random starts (default 0)")
    which.add_argument("--seeds", type=whole, nargs="+", metavar="N", help="several runs; those that are finished stay")
    add("--output", type=Path, metavar="DIR", help="default runs/DATASET-MODEL-seedN")
    add("--resume", action="store_true", help="insist on a checkpoint to continue (one is continued in any case)")
    add("--device", default="auto", help="auto (the default): cuda where there is one, else cpu")
    args = parser.parse_with_config(argv)
    if args.model == "cnn":
        why = "is for --model cnnf: a CNN has no feedback"
        cli.refuse(parser, args, (FeedbackSettings, LossWeights), why, but=("smoothing",))
    if args.mode is None:
        cli.refuse(parser, args, (small.Adversary,), "is for --adversarial only|augment", but=("seed",))
    elif args.attack == "fgsm" and args.step_size is not None:
        parser.error("--attack-step is for PGD: FGSM is one step of epsilon")
    return args
