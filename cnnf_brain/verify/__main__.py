"""Run a saved comparison again, from what it says of itself: ``cnnf-brain verify results/DIR``.

Networks, recordings and settings are those of run.json; paths in it are relative to the current folder, as they were. Features are
computed again, not taken from the cache, unless ``--cached``. It says whether every number agrees, and what is other than it was:
versions, machine, weights, images.

Exit codes: 0 every number agrees, 1 some do not, or an error (one line), 2 usage, 70 a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cnnf_brain import cli
from cnnf_brain.verify import verify


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = cli.Parser.of(__doc__, "python -m cnnf_brain.verify")
    parser.add_argument("folder", type=Path, metavar="DIR", help="results of compare")
    parser.add_argument("--cached", action="store_true", help="take features from the cache where they are there")
    args = parser.parse_args(argv)

    def show() -> int:
        found = verify(args.folder, cached=args.cached)
        print(found)
        return 0 if found.agrees else 1

    return cli.run(show, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
