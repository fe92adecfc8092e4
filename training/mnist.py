"""Train the small net of Appendix B.1 (Huang et al. 2020), as a CNN or a CNN-F, on MNIST or Fashion-MNIST.

    python training/mnist.py --dataset fashion --model cnn
    python training/mnist.py --dataset fashion --model cnnf --iterations 2 --seeds 0 1 2
    python training/mnist.py --dataset mnist --model cnnf --iterations 5 --adversarial augment --attack pgd7 --epsilon 0.3

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
    log.jsonl             for each epoch: losses by term and iteration, validation accuracy at every iteration
    checkpoints/          the last three

The same command again continues where the output folder has a checkpoint, exactly (on a CPU with the same number of
threads bit for bit). Where the run is finished it checks model.safetensors against the SHA-256 in card.json, and
restores the file from the last checkpoint if it is gone or damaged. SIGTERM and Ctrl-C finish the step, save and exit.

Exit codes: 0 finished, 1 error (one line), 2 usage, 75 stopped by a signal and saved: start it again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from cnnf_brain.datasets import mnist
from cnnf_brain.report import readers
from cnnf_brain.trainer import small
from cnnf_brain.trainer.adversary import ATTACKS, MODES, Adversary
from cnnf_brain.trainer.flags import (
    STOPPED,
    add_model_flags,
    feedback_settings,
    loss_weights,
    positive,
    settle_model_flags,
    share,
    weight,
    whole,
)
from cnnf_brain.trainer.loop import NonFiniteLoss, Stop


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    command = shlex.join(["python", "training/mnist.py", *argv])
    try:
        with Stop() as stop:
            for seed in args.seeds:
                card = small.train(
                    settings(args, seed), output(args, seed), command, folder=args.data, device=args.device,
                    save_every=args.save_every, insist=args.resume, stop=stop,
                )  # fmt: skip
                if card is None:
                    return STOPPED
                report(card, output(args, seed) / "model.safetensors")
    except (ValueError, OSError, NonFiniteLoss) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def settings(args: argparse.Namespace, seed: int) -> small.Settings:
    """The run of one seed."""
    adversary = None
    if args.adversarial:
        adversary = Adversary(args.adversarial, args.attack, args.epsilon, args.attack_step, seed)
    feedback = feedback_settings(args)
    if args.normalisation:
        feedback["normalisation"] = args.normalisation
    return small.Settings(
        dataset=args.dataset,
        feedback=feedback,
        losses=loss_weights(args),
        epochs=args.epochs,
        learning_rate=args.lr,
        weight_decay=args.weight_decay,
        batch_size=args.batch_size,
        seed=seed,
        half=args.half,
        limit=args.limit,
        adversary=adversary,
        amp=args.amp,
    )


def output(args: argparse.Namespace, seed: int) -> Path:
    """The folder of one seed's run."""
    if args.output is not None:
        return args.output / f"seed{seed}" if args.many else args.output
    iterations = f"-{args.iterations}" if args.model == "cnnf" else ""
    adversarial = f"-{args.adversarial}-{args.attack}-{args.epsilon:g}" if args.adversarial else ""
    return Path("runs", f"{args.dataset}-{args.model}{iterations}{adversarial}-seed{seed}")


def report(card: dict[str, Any], path: Path) -> None:
    """The result on standard output."""
    for t, (valid, test) in enumerate(zip(card["validation_accuracy"], card["test_accuracy"], strict=True)):
        print(f"iteration {t}: validation accuracy {100 * valid:.2f} %, test accuracy {100 * test:.2f} %")
    print(f"weights and card: {path}, page: {readers.leave(path.parent)}")


def arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; contradictions are usage errors (exit code 2)."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, standard, hardened = parser.add_argument, small.STANDARD, small.ADVERSARIAL
    add("--dataset", choices=sorted(mnist.TITLES), required=True)
    add("--data", type=Path, metavar="DIR", help="folder of the IDX files; nothing else is tried then")
    add_model_flags(parser, "input, relu1, ...")
    add("--normalisation", choices=["rms", "l2"], help="of the maps (default rms; l2 as printed in A.4)")
    add("--adversarial", choices=MODES, help="train on adversarial images alone, or clean and adversarial ones together")
    add("--attack", choices=sorted(ATTACKS), help="of --adversarial (default pgd7)")
    add("--epsilon", type=share, help="of --adversarial, for images in [0, 1] (default 0.3)")
    add(
        "--attack-step",
        type=positive(float),
        help="step size of PGD, for images in [0, 1] (default: the paper's, 0.01 to 0.015)",
    )
    add("--epochs", type=positive(int),
        help=f"default {standard['epochs']}, with --adversarial {hardened['epochs']}")  # fmt: skip
    add("--lr", type=positive(float),
        help=f"default {standard['learning_rate']:g}, with --adversarial {hardened['learning_rate']:g}")  # fmt: skip
    add("--weight-decay", type=weight, default=5e-4, help="default 5e-4")
    add("--batch-size", type=positive(int), default=64, help="clean images of a step (default 64)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=whole, help="of weights, order of the images and random starts (default 0)")
    which.add_argument("--seeds", type=whole, nargs="+", metavar="N", help="several runs; those that are finished stay")
    add("--limit", type=positive(int), metavar="N", help="only N of the training images, evenly spaced (to try things out)")
    add("--amp", choices=["bfloat16"], help="mixed precision in training; validation and test stay in float32")
    add("--half", action="store_true", help="store the weights in float16, and measure those")
    add("--output", type=Path, metavar="DIR", help="default runs/DATASET-MODEL-seedN")
    add("--save-every", type=positive(int), default=500, metavar="STEPS", help="between checkpoints (default 500)")
    add("--resume", action="store_true", help="insist on a checkpoint to continue (one is continued in any case)")
    add("--device", default="auto", help="auto (the default): cuda where there is one, else cpu")
    args = parser.parse_args(argv)
    settle_model_flags(parser, args)
    settle_training_flags(parser, args)
    return args


def settle_training_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Defaults that depend on the mode; a usage error where an attack's setting has no attack."""
    if args.adversarial is None:
        for name in ("attack", "epsilon", "attack_step"):
            if getattr(args, name) is not None:
                parser.error(f"--{name.replace('_', '-')} is for --adversarial only|augment")
    else:
        args.attack = args.attack or "pgd7"
        args.epsilon = 0.3 if args.epsilon is None else args.epsilon
        if args.attack == "fgsm" and args.attack_step is not None:
            parser.error("--attack-step is for PGD: FGSM is one step of epsilon")
    defaults = small.ADVERSARIAL if args.adversarial else small.STANDARD
    args.epochs = args.epochs or defaults["epochs"]
    args.lr = args.lr or defaults["learning_rate"]
    args.many = args.seeds is not None
    args.seeds = list(dict.fromkeys(args.seeds)) if args.many else [args.seed or 0]


if __name__ == "__main__":
    sys.exit(main())
