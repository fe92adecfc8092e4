"""Make the page of a run again from its folder: ``python -m cnnf_brain.report DIR``; several: one page with a row for each run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cnnf_brain import cli
from cnnf_brain.report import PAGE, page, readers
from cnnf_brain.sweep.cells import MANIFEST
from cnnf_brain.sweep.table import collect


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where the page was written, 1 with a line on stderr where it was not, 2 for its flags."""
    p = cli.Parser(prog="python -m cnnf_brain.report", description=__doc__)
    results = "results of compare, sweep, robustness, visualize, a trainer"
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help=results)
    p.add_argument("--output", type=Path, metavar="FILE", help=f"of several folders (default {PAGE} here)")
    args = p.parse_args(argv)
    if args.output is not None and len(args.folders) == 1:
        p.error(f"--output is for several folders; the page of one is {PAGE} in that folder")
    return cli.run(lambda: _write(args.folders, args.output), debug=args.debug)


def _write(folders: Sequence[Path], output: Path | None) -> int:
    for folder in folders:
        if (folder / MANIFEST).is_file():  # a study: its tables are of the cells that are done by now
            collect(folder)
    if len(folders) == 1:
        path = readers.leave(folders[0])
    else:
        path = page.side_by_side([readers.read(folder) for folder in folders], output or Path(PAGE))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
