"""The robustness figures of the paper: ``python -m cnnf_brain.robustness --experiment fig6 --quick``.

Trains the networks that are missing, attacks them, and writes table, figure and page. Stopped (Ctrl-C, SIGTERM) or killed, the
same command continues; the same command in a second process shares the work. A folder of results belongs to one experiment, recipe
and data set; another one is refused. ``--quick`` is a smaller grid that takes about ten minutes on two cores. Epsilons are for
images in [0, 1].

Exit codes: 0 finished, 1 error (one line), 2 usage, 75 stopped by a signal: start it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cnnf_brain import networks, results
from cnnf_brain.cli import STOPPED, number
from cnnf_brain.robustness import grids, report, work
from cnnf_brain.robustness.workshop import open_workshop
from cnnf_brain.trainer.loop import NonFiniteLoss, Stop


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where the figure was made, 1 with one line on stderr where it was not, 2 for its flags."""
    args = arguments(argv)
    try:
        return run(args)
    except (ValueError, OSError, ImportError, NonFiniteLoss) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Networks, cells, tables. What can be wrong is found before the first network is trained and before a folder is made."""
    started, device = time.monotonic(), networks.pick_device(args.device)
    grid = grids.grid(
        args.experiment, quick=args.quick, recipe=args.recipe, epochs=args.epochs, limit=args.limit, images=args.images,
        seeds=tuple(args.seeds) if args.seeds else None, epsilons=tuple(args.epsilons) if args.epsilons else None,
        strong_images=args.strong_images, learning_rate=args.learning_rate, amp=args.amp, weaker=args.weaker_attacks or None,
        strong_epsilons=tuple(args.strong_epsilons) if args.strong_epsilons else None,
    )  # fmt: skip
    folder = args.output or default_folder(grid)
    shop = open_workshop(grid, folder, args.models, results.command(), data_folder=args.data, device=device)
    todo = work.tasks(shop)
    if not args.tables:
        work.check_packages(todo)
    report.begin(shop)
    there = sum(work.done(task) for task in todo)
    print(f"{report.caption(grid)}\n{there} of {len(todo)} files are there; output {folder}")
    with Stop() as stop, Progress() as progress:
        finished = there == len(todo) if args.tables else work.work(todo, stop, progress.tell)
    if args.tables:
        work.tell_outdated(todo, "left out of the tables; without --tables the same command makes it again")
    elif not finished:
        print("stopped; what is finished is kept, and the same command continues", file=sys.stderr)
        return STOPPED
    written = report.write(shop, finished=finished, seconds=time.monotonic() - started, device_name=results.machine(device))
    print((folder / "shown.csv").read_text(), end="")
    print(f"tables, figure and page: {written.parent}")
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
    """The flags."""
    summary, _, rest = (__doc__ or "").partition("\n")
    count, rate, share = number(int, {"above": 0}), number(float, {"above": 0}), number(float, {"least": 0, "most": 1})
    p = argparse.ArgumentParser("python -m cnnf_brain.robustness", description=summary, epilog=rest,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("--experiment", choices=list(grids.GRIDS), required=True)
    p.add_argument("--quick", action="store_true", help="a smaller grid, about ten minutes on two cores, labelled as such")
    p.add_argument("--recipe", choices=list(grids.RECIPES), default=grids.TUNED,
                   help="how CNN-Fs are made: tuned on validation images (default), or the paper's; captions name it")  # fmt: skip
    p.add_argument("--seeds", type=number(int, {"least": 0}), nargs="+", metavar="N", help="default: the paper's five")
    p.add_argument("--epochs", type=count, help="default: 30, with adversarial training 90")
    p.add_argument("--learning-rate", type=rate, help="default: 1e-3, with adversarial training 1e-4")
    p.add_argument(
        "--amp", choices=["bfloat16"], help="mixed precision in training, named in captions; attacks stay in float32"
    )
    p.add_argument("--limit", type=count, metavar="N", help="training images (default: all)")
    p.add_argument("--images", type=count, metavar="N", help="images that are attacked (default 1000)")
    p.add_argument("--strong-images", type=count, metavar="N", help="of these, for the worst case (default 200)")
    p.add_argument(
        "--weaker-attacks", action="store_true", help="for the worst case, with fewer steps and queries; captions say so"
    )
    p.add_argument("--epsilons", type=share, nargs="+", metavar="E", help="for images in [0, 1]")
    p.add_argument(
        "--strong-epsilons",
        type=share,
        nargs="+",
        metavar="E",
        help="of the worst case (default 0.1 0.3; fig8b 0.3 0.4)",
    )
    p.add_argument("--tables", action="store_true", help="train and attack nothing: tables and figure of what is finished")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of the IDX files; default: found, or downloaded")
    p.add_argument("--models", type=Path, default=Path("runs", "robustness"), metavar="DIR",
                   help="the networks, which all figures share (default runs/robustness)")  # fmt: skip
    p.add_argument("--output", type=Path, metavar="DIR", help="default results/robustness-EXPERIMENT[-paper][-quick]")
    p.add_argument("--device", default=networks.AUTO, help="default auto: cuda where there is one, else cpu")
    return p.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
