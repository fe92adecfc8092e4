"""The robustness figures of the paper: ``python -m cnnf_brain.robustness --experiment fig6 --quick``.

Trains the networks that are missing, attacks them, and writes table, figure and page. Stopped (Ctrl-C, SIGTERM) or killed, the
same command continues; the same command in a second process shares the work. A folder of results belongs to one experiment, recipe
and data set; another one is refused. ``--quick`` is a smaller grid that takes about ten minutes on two cores. Epsilons are for
images in [0, 1].

Exit codes: 0 finished, 1 error (one line), 2 usage, 70 a bug, 75 stopped by a signal: start it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cnnf_brain import cli, images, results
from cnnf_brain.cli import STOPPED
from cnnf_brain.robustness import Interrupted, grids, open_workshop, report, run_grid, tasks
from cnnf_brain.work import Stop

FIGURES = {
    "seeds": "those of the paper, five or four",
    "epsilons": "those of the figure",
    "strong_epsilons": "0.1 0.3; fig8b 0.3 0.4",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where the figure was made, 1 with one line on stderr where it was not, 2 for its flags."""
    args = arguments(argv)
    return cli.run(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """The grid that the flags ask for; what is asked wrongly is found before a folder is made."""
    device = images.pick_device(args.device)
    grid = grids.grid(args.experiment, **cli.given(args, grids.Grid))
    folder = args.output or default_folder(grid)
    shop = open_workshop(grid, folder, args.models, results.command(), data_folder=args.data, device=device)
    todo = tasks(shop)
    print(f"{report.caption(grid)}\n{sum(task.done() for task in todo)} of {len(todo)} files are there; output {folder}")
    try:
        with Stop() as stop, Progress() as progress:
            result = run_grid(shop, only_tables=args.tables, stop=stop, tell=progress.tell)
    except Interrupted:
        print("stopped; what is finished is kept, and the same command continues", file=sys.stderr)
        return STOPPED
    print(result.shown.to_csv(index=False), end="")
    print(f"tables, figure and page: {folder}")
    return 0


def default_folder(grid: grids.Grid) -> Path:
    """``results/robustness-fig6``, with the recipe where it is not the tuned one, and with ``-quick``."""
    recipe = "" if grid.recipe == grids.TUNED else f"-{grid.recipe}"
    return Path("results", f"robustness-{grid.name}{recipe}{'-quick' if grid.quick else ''}")


class Progress:
    """What is being done and when all will be: a bar on a terminal, else one line for each task, both with the time left."""

    def __init__(self) -> None:
        self.bar = tqdm(disable=None, bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]{postfix}", smoothing=0.05)
        self.began, self.first = time.monotonic(), 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tell(self, done: float, total: float, title: str) -> None:
        """``done`` of ``total`` costs are behind, ``title`` is next."""
        if self.bar.total is None:
            self.bar.total, self.bar.initial, self.first = total, done, done
        self.bar.n = done
        self.bar.set_postfix_str(title)
        if self.bar.disable:
            left = remaining(self.first, done, total, time.monotonic() - self.began)
            print(f"{100 * done / max(total, 1):5.1f} %  {left}  {title}", file=sys.stderr, flush=True)


def remaining(first: float, done: float, total: float, seconds: float) -> str:
    """The time left at the rate since ``first``, in words."""
    if done <= first:
        return "time left: not known yet"
    left = (total - done) * seconds / (done - first)
    return f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags: those of the grid follow from its record."""
    p = cli.Parser.of(__doc__, "python -m cnnf_brain.robustness")
    p.add_argument("--experiment", choices=list(grids.GRIDS), required=True)
    cli.add_flags(p, grids.Grid, defaults=FIGURES)
    p.add_argument("--tables", action="store_true", help="train and attack nothing: tables and figure of what is finished")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of the IDX files; default: found, or downloaded")
    networks, shared = Path("runs", "robustness"), "the networks, which all figures share (default runs/robustness)"
    p.add_argument("--models", type=Path, default=networks, metavar="DIR", help=shared)
    p.add_argument("--output", type=Path, metavar="DIR", help="default results/robustness-EXPERIMENT[-paper][-quick]")
    p.add_argument("--device", default=images.AUTO, help="default auto: cuda where there is one, else cpu")
    return p.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
