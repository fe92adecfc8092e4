"""Figure 9 of Huang et al. (2020), drawn and measured: ``python -m cnnf_brain.visualize --figure 9a``.

On Fashion-MNIST or MNIST, with the shipped CNN-F or one of training/mnist.py. Parts: 9a decision cells, 9b adversarial
examples and attention, 9c attention over iterations, 9d restored images. Tables are written first, the figure and the page
(report.html) are made from them; docs/results/figure9.md says what was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnf_brain import provenance
from cnnf_brain.files import check_writable
from cnnf_brain.model.weights import read_card
from cnnf_brain.networks import SMALL, Network, load_network
from cnnf_brain.trainer import data
from cnnf_brain.trainer.flags import positive, whole
from cnnf_brain.visualize import draw, write
from cnnf_brain.visualize.figures import FIGURES, IMAGES, Given
from cnnf_brain.visualize.view import View

CLASSES = {
    "fashion": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "mnist": tuple("0123456789"),
}
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
    folder = args.output or Path("results", f"figure-{args.figure}")
    check_writable(folder)
    network = load(args.weights, args.iterations, args.device)
    view = View(network.module)  # type: ignore[arg-type]
    source = data.find(args.dataset, args.data)
    digest = source.check()
    _, validation = data.split(source.read("train"))
    n = IMAGES[args.figure] if args.images is None else args.images
    if n is not None and n > len(validation):
        raise ValueError(f"--images {n}: there are {len(validation)} validation images; give fewer, or leave the flag out")
    given = Given(view, validation.images.unsqueeze(1).float() / 255, validation.labels, n, args.seed, tell)
    write.begin(folder)
    summary = FIGURES[args.figure](given, folder)
    draw.draw(args.figure, folder, CLASSES[args.dataset])
    record = describe(args, network, digest, len(given.sample()), started)
    page = write.finish(folder, summary, record)
    print(summary["answer"])
    print(
        f"written to {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if not p.name.startswith('.')))} (see {page})"
    )


def tell(words: str) -> None:
    """Progress, on standard error."""
    print(words, file=sys.stderr, flush=True)


def check_libraries(figure: str) -> None:
    """An ImportError that names the extra, before long work."""
    missing = [name for name in NEEDS.get(figure, []) if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"figure {figure} needs {' and '.join(missing)}: pip install 'cnnf-brain[visualize]'")


def load(weights: str | None, iterations: int, device: str) -> Network:
    """The small net with its feedback; a ValueError where the weights are of a network that was trained without."""
    network = load_network(SMALL, weights, iterations=iterations, device=device)
    if weights is not None:
        feedback = read_card(weights).get("feedback")
        if isinstance(feedback, dict) and feedback.get("iterations") == 0:
            raise ValueError(
                f"--weights {weights}: by its card this network was trained without feedback, and Figure 9 is about feedback; "
                "give the weights of a CNN-F, or leave the flag out for the shipped one"
            )
    return network


def describe(args: argparse.Namespace, network: Network, digest: str, n: int, started: float) -> dict[str, Any]:
    """What the run was."""
    module: Any = network.module
    return {
        "command": provenance.command(),
        "figure": args.figure,
        "network": {"name": network.name, "weights": network.weights, "sha256": network.digest, "feedback": module.settings},
        "data": {"dataset": args.dataset, "sha256": digest, "part": "validation (held out of the training images)"},
        "images": n,
        "seed": args.seed,
        "same": {
            "figure": args.figure,
            "network": network.digest[:12],
            "feedback": ", ".join(f"{k} {v}" for k, v in module.settings.items()),
            "data": f"{args.dataset} {digest[:12]}",
            "images": n,
            "seed": args.seed,
        },
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(network.device),
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
        choices=sorted(data.TITLES),
        default="fashion",
        help="default fashion, on which the shipped networks were trained",
    )
    add("--data", type=Path, metavar="DIR", help="folder of the IDX files; nothing else is tried then")
    add("--weights", metavar="FILE", help="of a CNN-F by training/mnist.py (default: the shipped CNN-F)")
    add("--iterations", type=whole, default=2, metavar="N", help="of feedback (default 2)")
    add(
        "--images",
        type=positive(int),
        metavar="N",
        help="validation images to measure (default 9a: 200, 9b: 300, 9c: 500, 9d: all)",
    )
    add("--seed", type=whole, default=0, help="of the images, the examples and the noise (default 0)")
    add("--device", default="cpu")
    add("--output", type=Path, metavar="DIR", help="default results/figure-9a, ...")
    return p.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
