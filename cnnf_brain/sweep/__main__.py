"""Score many networks as one study, on this machine or on a cluster: ``cnnf-brain sweep study.toml``.

docs/sweep.md shows the form of study.toml. The study is checked as a whole before anything runs. The same command in another
terminal, or on another machine with the same folder and cache, shares the work; stopped or killed, it goes on. ``--dry-run`` says
what the study takes. ``cnnf-brain status DIR`` shows how far it is, ``cnnf-brain report DIR`` makes its tables while it runs.

Exit codes: 0 finished or submitted, 1 error, or cells that failed, 2 usage, 70 a bug, 75 stopped by a signal: start it again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnf_brain import cli
from cnnf_brain.sweep import Interrupted, Study, Table, estimate, submit, sweep
from cnnf_brain.work import Stop


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = cli.Parser.of(__doc__, "python -m cnnf_brain.sweep")
    parser.add_argument("study", type=Path, metavar="STUDY.toml")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: results/ and the name of the file")
    parser.add_argument(
        "--dry-run", action="store_true", help="check it, and say cells, hours and gigabytes; nothing is made"
    )
    where = "local N: N processes here; slurm: array jobs of the cluster ([slurm] of the study)"
    parser.add_argument("--submit", nargs="+", metavar="WHERE", help=where)
    args = parser.parse_args(argv)
    words = args.submit or []
    if words not in ([], ["slurm"]) and not re.fullmatch("local 0*[1-9][0-9]*", " ".join(words), re.ASCII):
        parser.error("--submit takes slurm, or local and a number of processes")
    return cli.run(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """What the flags ask for."""
    study, folder = Study.read(args.study), args.output or Path("results", args.study.stem)
    if args.dry_run:
        print(estimate(study, folder))
        return 0
    try:
        if not args.submit:
            with Stop() as stop:
                return show(sweep(study, folder, stop=stop), folder)
        if args.submit[0] == "local":
            return show(submit.locally(study, folder, int(args.submit[1])), folder)
    except Interrupted:
        print("stopped; what is finished is kept, and the same command continues", file=sys.stderr)
        return cli.STOPPED
    jobs = submit.to_slurm(study, folder)
    print(f"submitted: {', '.join(jobs) or 'nothing, all cells are done'}; cnnf-brain status {folder} shows how far it is")
    return 0


def show(table: Table, folder: Path) -> int:
    """Ranking and answer on standard output, failures on stderr."""
    columns = ["rank", "region", "source", "metric", "network", "layer", "iteration", "score"]
    print(f"{table.ranking[columns].to_string(index=False)}\n\n{table.answer}\n\ntables and page: {folder}")
    for name, error in table.failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
