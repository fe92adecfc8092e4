"""What the command lines of training/*.py have in common."""

from __future__ import annotations

import argparse
from typing import Any

from cnnf_brain.model.losses import REDUCTIONS
from cnnf_brain.trainer.loop import LossWeights

STOPPED = 75  # exit code, EX_TEMPFAIL: stopped by a signal and saved; nothing is wrong, start it again
FEEDBACK: dict[str, Any] = {
    "iterations": 2, "target": "input", "step_size": 1.0, "match_norm": True, "match_layers": False
}  # fmt: skip
LOSSES = {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0}


def add_model_flags(parser: argparse.ArgumentParser, layers: str, **defaults: Any) -> None:
    """--model, the feedback's settings and the loss weights.

    ``layers``: examples of targets, in words; ``defaults``: those that are not FEEDBACK's.
    """
    feedback = FEEDBACK | defaults
    parser.set_defaults(feedback_defaults=feedback)
    add = parser.add_argument
    add("--model", choices=["cnn", "cnnf"], required=True)
    add("--iterations", type=positive(int), help=f"feedback iterations (default {feedback['iterations']})")
    add("--target", metavar="LAYER", help=f"what is reconstructed: {layers} (default {feedback['target']})")
    add("--step-size", type=positive(float), help=f"1 = replacement (default {feedback['step_size']})")
    add("--match-norm", action=argparse.BooleanOptionalAction,
        help=f"reconstruction scaled to the norm of the target (default {feedback['match_norm']})")  # fmt: skip
    add("--match-layers", action=argparse.BooleanOptionalAction,
        help=f"each layer's output held to its norm of the first pass (default {feedback['match_layers']})")  # fmt: skip
    for name, default in LOSSES.items():
        add(f"--{name}", type=weight, metavar="WEIGHT", help=f"weight of the {name} loss (default {default})")
    add("--reconstruction-reduction", choices=REDUCTIONS,
        help="of the reconstruction loss over elements: mean (default), or sum as Table 1 prints it")  # fmt: skip


def settle_model_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Defaults of what a CNN-F was not told; a usage error where a CNN was given a setting of feedback."""
    for name, default in {**args.feedback_defaults, **LOSSES, "reconstruction_reduction": "mean"}.items():
        if args.model == "cnnf" and getattr(args, name) is None:
            setattr(args, name, default)
        elif args.model == "cnn" and getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for --model cnnf: a CNN has no feedback")
    if args.model == "cnn":
        vars(args).update(dict.fromkeys(LOSSES, 0.0), reconstruction_reduction="mean")


def feedback_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings as ``CNNF`` takes them; of a CNN 0 iterations alone."""
    if args.model == "cnn":
        return {"iterations": 0}
    return {"iterations": args.iterations, "target": args.target, "step": args.step_size, "match_norm": args.match_norm,
            "match_layers": args.match_layers}  # fmt: skip


def loss_weights(args: argparse.Namespace) -> LossWeights:
    """The settings of the losses; of a CNN none but the cross-entropy."""
    return LossWeights(args.reconstruction, args.latent, args.norm, args.reconstruction_reduction)


def positive(kind: type[int] | type[float]) -> Any:
    """An argparse type: a finite number above zero."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return number


def weight(text: str) -> float:
    """An argparse type: a finite number, 0 or above."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or above")
    return value


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1]")
    return value


def whole(text: str) -> int:
    """An argparse type: a whole number, 0 or above."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or above")
    return value
