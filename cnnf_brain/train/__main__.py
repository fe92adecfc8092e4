"""``cnnf-brain train small ...`` and ``cnnf-brain train imagenet ...``, each with a --help of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cnnf_brain import cli
from cnnf_brain.train import imagenet, small

TRAINERS = {"small": small.main, "imagenet": imagenet.main}


def main(argv: Sequence[str] | None = None) -> int:
    """The trainer that the first word names, with the other words; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    about = "Train the small net on MNIST or Fashion-MNIST, or VGG-16 or AlexNet on ImageNet. Each has a --help of its own."
    parser = cli.Parser(prog="cnnf-brain train", usage="cnnf-brain train {small,imagenet} ...", description=about)
    parser.add_argument("trainer", choices=TRAINERS)
    return TRAINERS[parser.parse_args(words[:1]).trainer](words[1:])


if __name__ == "__main__":
    sys.exit(main())
