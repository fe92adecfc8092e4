"""The layers of a network, and the shapes of their maps: ``python -m cnnf_brain.layers vgg16``.

These names are those that ``compare --layers V4=features.16`` and all else take. Nothing is downloaded (but for ``hf:``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tabulate import tabulate

from cnnf_brain import cli
from cnnf_brain.activations import list_layers
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import HUB
from cnnf_brain.networks import RANDOM, plan


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0, 1 with one line on stderr where it fails, 2 for its flags."""
    args = arguments(argv)
    return cli.run(lambda: show(args), debug=args.debug)


def show(args: argparse.Namespace) -> int:
    """The table on standard output."""
    weights = args.weights or (None if args.model.startswith(HUB) else RANDOM)
    network = plan(args.model, weights, image_size=args.image_size).skeleton()
    size, channels = network.preprocessing.size, len(network.preprocessing.mean)
    regions = {layer: [r for r, own in network.layers.items() if own == layer] for layer in network.layers.values()}
    rows = [
        (layer.name, layer.kind, " x ".join(map(str, layer.shape)), ", ".join(regions.get(layer.name, [])))
        for layer in list_layers(network)
    ]
    print(f"{network.name}: layers for an image of {channels} x {size} x {size}")
    print(tabulate(rows, ["layer", "type", "shape", "region"], disable_numparse=True))
    if isinstance(network.module, CNNF):
        print(
            f"Feedback runs {network.iterations} iterations down to {network.module.target}: {rows[-1][0]}@1 is after the first."
        )
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser.of(__doc__, "python -m cnnf_brain.layers")
    add = parser.add_argument
    add("model", metavar="MODEL", help="small, vgg16, alexnet, torchvision:NAME, path/to/file.py:function, ...")
    add("--weights", metavar="FILE", help="whose card says image size and classifier (default: none is read)")
    add("--image-size", type=cli.number(int, {"above": 0}), metavar="PIXELS", help="default: as the network is shown images")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
