"""Train the small net of Appendix B.1 (Huang et al. 2020), as a CNN or a CNN-F, on MNIST or Fashion-MNIST.

    python training/mnist.py --dataset fashion --model cnn
    python training/mnist.py --dataset fashion --model cnnf --iterations 2 --seed 1

The defaults are the paper's standard training: Adam, learning rate 1e-3, weight decay 5e-4, 30 epochs, images in
[-1, 1], reconstruction loss at 0.1. What the paper leaves open (batch size, target layer, step size, matching of
norms) has its default and its reason in docs/training-small.md.

Data: four IDX files, gzipped or not, in --data DIR; without --data in the cache folder, in Debian's package
dataset-fashion-mnist, else downloaded by torchvision. A twelfth of the training images (5,000) is held out for
validation. Nothing is chosen during a run: the weights are those of the last epoch. The test images are used once, at
the end, on the weights as they are stored.

Output (--output, default runs/DATASET-MODEL-seedN):
    model.safetensors     the weights; their card is in the metadata
    card.json, card.md    command, seed, commit, data hash, versions, time, accuracy at every iteration
    config.json           the configuration, written at the start
    log.jsonl             for each epoch: losses by term and iteration, validation accuracy at every iteration
    checkpoints/          the last three

The same command again continues where the output folder has a checkpoint, exactly (on a CPU with the same number of
threads bit for bit), and does nothing where the run is finished. SIGTERM and Ctrl-C finish the step, save and exit.

Exit codes: 0 finished, 1 error (one line), 2 usage, 75 stopped by a signal and saved: start it again.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cnnf_brain import CNNF, small_net
from cnnf_brain.files import check_writable
from cnnf_brain.trainer import data
from cnnf_brain.trainer.card import save_weights, write_card
from cnnf_brain.trainer.config import check_same, commit, environment, machine, versions, write_json
from cnnf_brain.trainer.flags import (
    LOSSES,
    STOPPED,
    add_model_flags,
    feedback_settings,
    positive,
    settle_model_flags,
    weight,
    whole,
)
from cnnf_brain.trainer.loop import LossWeights, NonFiniteLoss, Schedule, Stop, Trainer, accuracy


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    try:
        check_writable(args.output)
        with FileLock(args.output / ".lock", timeout=0):
            return run(args, shlex.join(["python", "training/mnist.py", *argv]))
    except Timeout:
        error: Exception = OSError(f"another run is writing to {args.output}; choose another --output")
    except (ValueError, OSError, NonFiniteLoss) as caught:
        error = caught
    print(f"error: {error}", file=sys.stderr)
    return 1


def run(args: argparse.Namespace, command: str) -> int:
    """Data, model, training, result."""
    device = torch.device(args.device)
    source = data.find(args.dataset, args.data)
    configuration = configure(args, source.check())
    if (args.output / "card.json").exists():
        return already_finished(args.output / "card.json", configuration)
    train, validation = data.split(source.read("train"))

    torch.manual_seed(args.seed)
    model = small_net(**configuration["feedback"]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)  # L2, as in the paper
    losses = LossWeights(**configuration["losses"])
    schedule = Schedule(args.epochs, args.batch_size, args.seed, args.save_every)
    trainer = Trainer(model, optimizer, losses, schedule, configuration, args.output)
    found = trainer.resume()
    if args.resume and found is None:
        raise ValueError(f"--resume: {args.output} has no checkpoint; leave --resume out to start there")
    record = {"command": command, "configuration": configuration, "commit": commit(), "versions": versions()}
    write_json(args.output / "config.json", {**record, "environment": environment(device)})
    print(
        f"{configuration['title']}: {len(train)} training and {len(validation)} validation images from {source.folder}, "
        f"{'continuing ' + str(found) if found else 'from the start'}, on {machine(device)}, output {args.output}"
    )

    with Stop() as stop:
        if not trainer.run(train.to(device), validation.to(device), stop):
            print(f"stopped by {stop.requested and stop.requested.name} after step {trainer.progress.step}, saved; "
                  "the same command continues", file=sys.stderr)  # fmt: skip
            return STOPPED

    return finish(args, model, record, source, validation, trainer.progress.seconds)


def finish(
    args: argparse.Namespace,
    model: CNNF,
    record: dict[str, Any],
    source: data.Source,
    validation: data.ImageSet,
    seconds: float,
) -> int:
    """Measure the weights as they will be stored, and store them: the one place where the test images are used."""
    device = torch.device(args.device)
    configuration = record["configuration"]
    card = {
        "title": configuration["title"],
        **record,
        "feedback": model.settings,
        "training_seconds": round(seconds),
        "machine": machine(device),
        "n_validation": len(validation),
    }
    dtype = getattr(torch, configuration["dtype"])
    stored = copy.deepcopy(model).to(dtype).to(torch.float32)
    card["validation_accuracy_before_storing"] = accuracy(model, validation.to(device))
    card["validation_accuracy"] = accuracy(stored, validation.to(device))
    test = source.read("test")
    card["n_test"] = len(test)
    card["test_accuracy"] = accuracy(stored, test.to(device))
    path = args.output / "model.safetensors"
    save_weights(path, stored, card, dtype)
    write_card(args.output, card)
    report(card, path)
    return 0


def configure(args: argparse.Namespace, data_hash: str) -> dict[str, Any]:
    """All that decides the outcome, as JSON values."""
    title = f"{'CNN' if args.model == 'cnn' else f'CNN-F-{args.iterations}'}, {data.TITLES[args.dataset]}"
    return {
        "title": title,
        "dataset": args.dataset,
        "data_hash": data_hash,
        "model": args.model,
        "feedback": feedback_settings(args),
        "losses": {name: getattr(args, name) for name in LOSSES},
        "epochs": args.epochs,
        "learning_rate": args.lr,
        "weight_decay": args.weight_decay,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "dtype": "float16" if args.half else "float32",
    }


def already_finished(path: Path, configuration: dict[str, Any]) -> int:
    """Nothing to do where the finished run is the one that was asked for; a ValueError where it is another."""
    card = json.loads(path.read_text())
    check_same(card["configuration"], configuration, path)
    print(f"already finished: {path}")
    report(card, path.parent / "model.safetensors")
    return 0


def report(card: dict[str, Any], path: Path) -> None:
    """The result on standard output."""
    for t, (valid, test) in enumerate(zip(card["validation_accuracy"], card["test_accuracy"], strict=True)):
        print(f"iteration {t}: validation accuracy {100 * valid:.2f} %, test accuracy {100 * test:.2f} %")
    print(f"weights and card: {path}")


def arguments(argv: list[str]) -> argparse.Namespace:
    """The flags; contradictions are usage errors (exit code 2)."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=sorted(data.TITLES), required=True)
    add("--data", type=Path, metavar="DIR", help="folder of the IDX files; nothing else is tried then")
    add_model_flags(parser, "input, relu1, ...")
    add("--epochs", type=positive(int), default=30, help="default 30")
    add("--lr", type=positive(float), default=1e-3, help="default 1e-3")
    add("--weight-decay", type=weight, default=5e-4, help="default 5e-4")
    add("--batch-size", type=positive(int), default=64, help="default 64")
    add("--seed", type=whole, default=0, help="of the initial weights and of the order of the images (default 0)")
    add("--half", action="store_true", help="store the weights in float16, and measure those")
    add("--output", type=Path, metavar="DIR", help="default runs/DATASET-MODEL-seedN")
    add("--save-every", type=positive(int), default=500, metavar="STEPS", help="between checkpoints (default 500)")
    add("--resume", action="store_true", help="insist on a checkpoint to continue (one is continued in any case)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default cuda where there is one")
    args = parser.parse_args(argv)
    settle_model_flags(parser, args)
    if args.output is None:
        iterations = f"-{args.iterations}" if args.model == "cnnf" else ""
        args.output = Path("runs", f"{args.dataset}-{args.model}{iterations}-seed{args.seed}")
    return args


if __name__ == "__main__":
    sys.exit(main())
