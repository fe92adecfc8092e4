"""What the command lines of training/*.py have in common."""

from __future__ import annotations

import argparse
from typing import Any

from cnnf_brain.model.state import REDUCTIONS
from cnnf_brain.model.weights import Card
from cnnf_brain.trainer.loop import LossWeights

STOPPED = 75  # exit code, EX_TEMPFAIL: stopped by a signal and saved; nothing is wrong, start it again
FEEDBACK: dict[str, Any] = {
    "iterations": 2, "target": "input", "step_size": 1.0, "match_norm": True, "match_layers": False, "ada_relu": "signed"
}  # fmt: skip
SETTING = {"step_size": "step"}  # flag -> CNNF's name of it, where they differ
LOSSES = {"reconstruction": 0.1, "latent": 0.0, "norm": 0.0}


def add_model_flags(parser: argparse.ArgumentParser, layers: str, *, required: bool = True, **defaults: Any) -> None:
    """--model, the feedback's settings and the loss weights.

    ``layers``: examples of targets, in words; ``required``: whether --model is; ``defaults``: those that are not FEEDBACK's.
    """
    feedback = FEEDBACK | defaults
    parser.set_defaults(feedback_defaults=feedback)
    add = parser.add_argument
    add("--model", choices=["cnn", "cnnf"], required=required)
    add("--iterations", type=positive(int), help=f"feedback iterations (default {feedback['iterations']})")
    add("--target", metavar="LAYER", help=f"what is reconstructed: {layers} (default {feedback['target']})")
    add("--step-size", type=positive(float), help=f"1 = replacement (default {feedback['step_size']})")
    add("--match-norm", action=argparse.BooleanOptionalAction,
        help=f"reconstruction scaled to the norm of the target (default {feedback['match_norm']})")  # fmt: skip
    add("--match-layers", action=argparse.BooleanOptionalAction,
        help=f"each layer's output held to its norm of the first pass (default {feedback['match_layers']})")  # fmt: skip
    add("--ada-relu", choices=["signed", "printed"],
        help=f"the gate of feedback: Lemma A.1 holds for signed, printed is eq. 3 (default {feedback['ada_relu']})")  # fmt: skip
    for name, default in LOSSES.items():
        add(f"--{name}", type=weight, metavar="WEIGHT", help=f"weight of the {name} loss (default {default})")
    add("--reconstruction-reduction", choices=REDUCTIONS,
        help="of the reconstruction loss over elements: mean (default), or sum as Table 1 prints it")  # fmt: skip


def settle_model_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Defaults of what a CNN-F was not told; a usage error where a CNN was given a setting of feedback."""
    if args.model is None:
        parser.error("the following arguments are required: --model")
    for name, default in {**args.feedback_defaults, **LOSSES, "reconstruction_reduction": "mean"}.items():
        if args.model == "cnnf" and getattr(args, name) is None:
            setattr(args, name, default)
        elif args.model == "cnn" and getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for --model cnnf: a CNN has no feedback")
    if args.model == "cnn":
        vars(args).update(dict.fromkeys(LOSSES, 0.0), reconstruction_reduction="mean")


def feedback_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings as ``CNNF`` takes them; of a CNN 0 iterations alone.

    ``ada_relu`` only where it is not the default, so that runs from before the flag go on.
    """
    if args.model == "cnn":
        return {"iterations": 0}
    settings = given_feedback(args)
    return {name: value for name, value in settings.items() if (name, value) != ("ada_relu", FEEDBACK["ada_relu"])}


def given_feedback(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of feedback that were given (None: not given), as ``CNNF`` takes them."""
    return {SETTING.get(name, name): getattr(args, name) for name in FEEDBACK if getattr(args, name) is not None}


def evaluated_feedback(args: argparse.Namespace, card: Card) -> dict[str, Any]:
    """The settings to evaluate weights with, as ``CNNF`` takes them: those given, else those of the card, else the defaults.

    Weights of a CNN, or without a card, have feedback only where --model cnnf or --iterations asks for it. A ValueError where
    settings of feedback were given for a network without iterations.
    """
    given, trained = given_feedback(args), card.iterations or 0
    default = args.feedback_defaults["iterations"] if args.model == "cnnf" else 0
    iterations = given.pop("iterations", 0 if args.model == "cnn" else trained or default)
    if not iterations and given:
        raise ValueError(f"{', '.join(given)}: settings of feedback, and these weights are evaluated without; give the "
                         "iterations, or leave the settings out")  # fmt: skip
    defaults = {SETTING.get(name, name): value for name, value in args.feedback_defaults.items()}
    settings = {**(dict(card.feedback) if trained else defaults), **given} if iterations else {}
    return {**settings, "iterations": iterations}


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
