"""How far a study is: ``cnnf-brain status DIR``, ``python -m cnnf_brain.status DIR``. It reads files alone, and holds nobody up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cnnf_brain import cli
from cnnf_brain.sweep.table import logs_of, status


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0, 1 with one line on stderr where there is no study, 2 for its flags."""
    parser = cli.Parser(prog="python -m cnnf_brain.status", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a study (cnnf-brain sweep)")
    parser.add_argument(
        "--cell", metavar="NAME", help="the logs of submitted jobs that were at this cell (part of its name)"
    )
    args = parser.parse_args(argv)

    def show() -> int:
        found = status(args.folder)
        print("\n".join(map(str, logs_of(args.folder, [args.cell])[args.cell])) if args.cell else found)
        return 0

    return cli.run(show, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
