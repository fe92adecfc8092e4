"""Figure 9 of Huang et al. (2020), drawn and measured: ``python -m cnnf_brain.visualize --figure 9a``.

On Fashion-MNIST or MNIST, with the shipped CNN-F or one of training/mnist.py. Parts: 9a decision cells, 9b adversarial
examples and attention, 9c attention over iterations, 9d restored images. Tables are written first, the figure and the page
(report.html) are made from them. The folder appears, or is replaced, when all of it is finished; one that holds something else
is refused. docs/results/figure9.md says what was found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cnnf_brain import cli, visualize
from cnnf_brain.datasets import mnist
from cnnf_brain.images import AUTO, pick_device
from cnnf_brain.model.weights import SMALL, read_card
from cnnf_brain.model.zoo import shipped_weights
from cnnf_brain.networks import Network, load_network
from cnnf_brain.report import PAGE

CLASSES = {
    "fashion": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    "mnist": tuple("0123456789"),
}
IMAGES = {"9a": 200, "9b": 300, "9c": 500, "9d": None}  # measured by default; None: all validation images


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where the figure was made, 1 with a line on stderr where it was not, 2 for its flags."""
    args = arguments(argv)
    return cli.run(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """Network and images -> the part's folder; its answer on standard output."""
    visualize.check_libraries(args.figure)
    view = visualize.View(load(args.weights, args.iterations, args.device))
    source = mnist.find(args.dataset, args.data)
    digest = source.check()
    _, validation = mnist.split(source.read("train"))
    pixels = validation.images.unsqueeze(1).float() / 255
    n = IMAGES[args.figure] if args.images is None else args.images
    tell = partial(print, file=sys.stderr, flush=True)
    sample = visualize.Sample(view, pixels, validation.labels, n, args.seed, tell, digest)
    folder = args.output or Path("results", f"figure-{args.figure}")
    data = {"dataset": args.dataset, "part": "validation (held out of the training images)"}
    made = visualize.write(args.figure, sample, folder, names=CLASSES[args.dataset], data=data)
    print(made.about.answer)
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))} (see {folder / PAGE})")
    return 0


def load(weights: str | None, iterations: int | None, device: str) -> Network:
    """The small net with its feedback, by default with as many iterations as it was trained with; else a ValueError."""
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


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    p = cli.Parser.of(__doc__, "python -m cnnf_brain.visualize")
    add, at_least_1 = p.add_argument, cli.number(int, {"least": 1})
    dataset = "default fashion, on which the shipped networks were trained"
    images = "validation images to measure (default 9a: 200, 9b: 300, 9c: 500, 9d: all)"
    device = "auto (default): a GPU where there is one, else cpu; or cpu, cuda, ..."
    add("--figure", choices=sorted(visualize.PARTS), required=True)
    add("--dataset", choices=sorted(mnist.TITLES), default="fashion", help=dataset)
    add("--data", type=Path, metavar="DIR", help="folder of the IDX files; nothing else is tried then")
    add("--weights", metavar="FILE", help="of a CNN-F by training/mnist.py (default: the shipped CNN-F)")
    add("--iterations", type=at_least_1, metavar="N", help="of feedback (default: as trained; the shipped CNN-F: 2)")
    add("--images", type=at_least_1, metavar="N", help=images)
    seed = "of the images, the examples and the noise (default 0)"
    add("--seed", type=cli.number(int, {"least": 0}), default=0, help=seed)
    add("--device", default=AUTO, help=device)
    add("--output", type=Path, metavar="DIR", help="default results/figure-9a, ...")
    args = p.parse_args(argv)
    if args.weights == "":
        p.error("--weights is empty; name a file, or leave the flag out for the shipped CNN-F")
    return args


if __name__ == "__main__":
    sys.exit(main())
