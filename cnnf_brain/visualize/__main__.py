"""Figure 9 of Huang et al. (2020), drawn and measured: ``python -m cnnf_brain.visualize --figure 9a``.

On Fashion-MNIST or MNIST, with the shipped CNN-F or one of training/mnist.py. Parts: 9a decision cells, 9b adversarial
examples and attention, 9c attention over iterations, 9d restored images. Tables are written first, the figure and the page
(report.html) are made from them. The folder appears, or is replaced, when all of it is finished; one that holds something else
is refused. docs/results/figure9.md says what was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnf_brain import results
from cnnf_brain.cli import number
from cnnf_brain.datasets import mnist
from cnnf_brain.model.weights import read_card
from cnnf_brain.networks import AUTO, SMALL, Network, load_network, pick_device, shipped_weights
from cnnf_brain.report import PAGE
from cnnf_brain.visualize import draw, write
from cnnf_brain.visualize.figures import FIGURES, IMAGES, Given
from cnnf_brain.visualize.view import View

CLASSES = {
    "fashion": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "mnist": tuple("0123456789"),
}
KIND = "visualize"
NEEDS = {"9b": ["captum"], "9c": ["captum"], "9d": ["skimage"]}


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where the figure was made, 1 with one line on stderr where it was not, 2 for its flags."""
    args = arguments(argv)
    try:
        run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Network, images, tables, figure, page."""
    started = time.time()
    check_libraries(args.figure)
    network = load(args.weights, args.iterations, args.device)
    view = View(network)
    source = mnist.find(args.dataset, args.data)
    digest = source.check()
    _, validation = mnist.split(source.read("train"))
    n = IMAGES[args.figure] if args.images is None else args.images
    if n is not None and n > len(validation):
        raise ValueError(f"--images {n}: there are {len(validation)} validation images; give fewer, or leave the flag out")
    given = Given(view, validation.images.unsqueeze(1).float() / 255, validation.labels, n, args.seed, tell)
    asked = {
        "figure": args.figure,
        "network": network.digest,
        "feedback": view.model.settings.as_dict(),
        "data": digest,
        "images": len(given.sample()),
        "seed": args.seed,
    }
    folder = args.output or Path("results", f"figure-{args.figure}")
    with results.results(folder, KIND, asked) as staging:
        summary = FIGURES[args.figure](given, staging)
        draw.draw(args.figure, staging, CLASSES[args.dataset])
        write.finish(staging, summary, describe(args.dataset, asked, network, started), shown_as=folder)
    print(summary["answer"])
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))} (see {folder / PAGE})")


def tell(words: str) -> None:
    """Progress, on standard error."""
    print(words, file=sys.stderr, flush=True)


def check_libraries(figure: str) -> None:
    """An ImportError that names the extra, before long work."""
    missing = [name for name in NEEDS.get(figure, []) if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"figure {figure} needs {' and '.join(missing)}: pip install 'cnnf-brain[visualize]'")


def load(weights: str | None, iterations: int | None, device: str) -> Network:
    """The small net with its feedback, by default with as many iterations as it was trained with.

    Raises
    ------
    ValueError
        The network was trained without feedback, or its weights have no card and no number of iterations is given.
    """
    card = read_card(shipped_weights(True) if weights is None else weights)
    if card.iterations == 0:
        raise ValueError(
            f"--weights {weights}: by its card this network was trained without feedback, and Figure 9 is about feedback; "
            "give the weights of a CNN-F, or leave the flag out for the shipped one"
        )
    n = card.iterations if iterations is None else iterations
    if n is None:
        raise ValueError(
            f"--weights {weights}: no card in it says how many iterations it was trained with; give --iterations"
        )
    return load_network(SMALL, weights, iterations=n, device=str(pick_device(device)))


def describe(dataset: str, asked: dict[str, Any], network: Network, started: float) -> dict[str, Any]:
    """What the run was: run.json."""
    same = {**asked, "feedback": ", ".join(f"{name} {value}" for name, value in asked["feedback"].items())}
    return {
        "command": results.command(),
        "configuration": asked,
        "network": {"name": network.name, "weights": network.weights},
        "data": {"dataset": dataset, "part": "validation (held out of the training images)"},
        "same": same | {"network": network.digest[:12], "data": f"{dataset} {asked['data'][:12]}"},
        "commit": results.commit(),
        "versions": results.versions(),
        "machine": results.machine(network.device),
        "seconds": round(time.time() - started, 1),
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    summary, _, rest = (__doc__ or "").partition("\n")
    p = argparse.ArgumentParser(
        prog="python -m cnnf_brain.visualize",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--figure", choices=sorted(FIGURES), required=True)
    add(
        "--dataset",
        choices=sorted(mnist.TITLES),
        default="fashion",
        help="default fashion, on which the shipped networks were trained",
    )
    add("--data", type=Path, metavar="DIR", help="folder of the IDX files; nothing else is tried then")
    add("--weights", metavar="FILE", help="of a CNN-F by training/mnist.py (default: the shipped CNN-F)")
    add(
        "--iterations",
        type=number(int, {"above": 0}),
        metavar="N",
        help="of feedback (default: as trained; the shipped CNN-F: 2)",
    )
    add(
        "--images",
        type=number(int, {"above": 0}),
        metavar="N",
        help="validation images to measure (default 9a: 200, 9b: 300, 9c: 500, 9d: all)",
    )
    add("--seed", type=number(int, {"least": 0}), default=0, help="of the images, the examples and the noise (default 0)")
    add("--device", default=AUTO, help="auto (default): a GPU where there is one, else cpu; or cpu, cuda, ...")
    add("--output", type=Path, metavar="DIR", help="default results/figure-9a, ...")
    args = p.parse_args(argv)
    if args.weights == "":
        p.error("--weights is empty; name a file, or leave the flag out for the shipped CNN-F")
    return args


if __name__ == "__main__":
    sys.exit(main())
