"""Write the Brain-Score plugins of a network, for a CNN-F also of its CNN control, and check a ZIP before it is uploaded.

    python -m cnnf_brain.submit --weights FILE --output DIR      # a ZIP and a folder for each identifier
    python -m cnnf_brain.submit --model torchvision:resnet50 --output DIR --regions V1=layer1 ...
    python -m cnnf_brain.submit --check ZIP                      # all that can be checked here; runs the plugin's code

From trained weights to a submitted model, step by step: docs/brain-score.md.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnf_brain import cli, images
from cnnf_brain.io import read_text
from cnnf_brain.model import settings
from cnnf_brain.model.settings import FeedbackSettings

if TYPE_CHECKING:  # brainscore_vision is imported where it is needed: the flags are shown without it
    from cnnf_brain.brainscore.plugin import Plugin

READY, BROKEN, UNFINISHED, UNKNOWN = 0, 1, 3, 4  # exit codes of a check: see ``outcome``
FEEDBACK = [name for name in settings.SETTINGS if name not in ("iterations", "tolerance")]


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where all is written or ready, 1 with one line on stderr where it is not, 2 for its flags.

    A check also ends with 3 for a draft, and with 4 where something was not run.
    """
    args = parse(argv)

    def work() -> int:
        try:
            return check(args.check, args.weights) if args.check else write(args)
        except KeyboardInterrupt:
            print("interrupted; the installed brainscore-vision is as it was", file=sys.stderr)
            return cli.INTERRUPTED

    # a batch system's end is an interrupt: what it leaves is cleaned up
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return cli.run(work, debug=args.debug)
    finally:
        signal.signal(signal.SIGTERM, ended)


def write(args: argparse.Namespace) -> int:
    """The network's plugin, and with feedback its control's."""
    from cnnf_brain.brainscore.plugin import Request, control_of, identify, write_plugins

    feedback = {name: value for name, value in cli.given(args, FeedbackSettings).items() if name in FEEDBACK}
    bibtex = {"bibtex": read_text(args.bibtex)} if args.bibtex else {}
    request = Request(
        weights=args.weights,
        place=place(args.stored, args.url),
        iterations=args.iterations,
        model=args.model,
        name=args.name,
        regions=dict(args.regions),
        feedback=feedback,
        time_bins=tuple((int(start), int(end)) for start, end in args.time_bins) if args.time_bins else None,
        image_size=args.image_size,
        neural_only=args.neural_only,
        device=images.pick_device(args.device),
        **bibtex,
    )
    plugins = [identify(request)]
    if plugins[0].identity.iterations:
        plugins.append(identify(control_of(request, args.control, place(args.control_stored, args.control_url))))
    elif args.control:
        raise ValueError(f"--control {args.control}: {args.weights} run no feedback, so they are the CNN themselves")
    for plugin, (folder, archive) in zip(plugins, write_plugins(plugins, args.output), strict=True):
        describe(plugin, folder, archive)
    return 0


def describe(plugin: Plugin, folder: Path, archive: Path) -> None:
    """What was written, in a few lines."""
    identity = plugin.identity
    print(f"{identity.identifier}: {identity.title}")
    print(f"  {archive} for the website, {folder} for a pull request (brainscore_vision/models/{folder.name})")
    print(f"  regions {_listed(identity.regions)}")
    left_out = ", ".join(identity.left_out)
    if left_out:
        print(f"  left out: {left_out}, for which no layer is known (--regions names one); no benchmark scores it there")
    if identity.iterations:
        bins = " ".join(f"{start}-{end}" for start, end in identity.time_bins)
        carded = "" if plugin.carded else " (the weights have no card: these are yours, or else the defaults)"
        print(f"  feedback {_listed(identity.feedback)}; time bins {bins} ms{carded}")
    if plugin.own:
        print(f"  your code goes into the plugin and becomes public with it: {', '.join(plugin.own.sources)}")
    if identity.weights.draft:
        upload = "upload them and add --stored PATH VERSION_ID or --url URL"
        print(f"  a draft: it names no place to load its weights from; {upload}")


def _listed(pairs: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in pairs.items())


def place(stored: Sequence[str] | None, url: str | None) -> dict[str, str]:
    """What the weights' place is called in a request."""
    return {"stored": stored[0], "version_id": stored[1]} if stored else {"url": url} if url else {}


def check(archive: Path, weights: str | None) -> int:
    """Every stage and every finding on a line of its own, as it comes."""
    from cnnf_brain.brainscore.check import check_plugin
    from cnnf_brain.brainscore.plugin import recorded_weights
    from cnnf_brain.brainscore.rehearsal import DRAFT, FAILED, NOT_RUN, OK

    path = Path(weights) if weights else recorded_weights(archive)
    if path is None:
        print("no weights are given (--weights FILE): they are fetched from the place that the plugin names")
    elif not weights:
        print(f"weights {path} (noted beside the ZIP when it was written)")
    started = time.time()
    signs = {OK: "  ok", FAILED: "FAIL", NOT_RUN: "   -", DRAFT: "   -"}
    found: dict[str, list[str]] = {status: [] for status in signs}
    for finding in check_plugin(archive, path, lambda words: print(f"      {words}", flush=True)):
        found[finding.status].append(_harmless(finding.rule))
        words = {NOT_RUN: "not run, ", DRAFT: "a draft, "}.get(finding.status, "")
        detail = f": {words}{finding.detail}" if finding.detail else ""
        print(_harmless(f"{signs[finding.status]}  {finding.rule}{detail}"), flush=True)
    counts = ", ".join(f"{len(rules)} {status}" for status, rules in found.items() if rules or status in (OK, FAILED))
    print(f"{counts}; {time.time() - started:.0f} s", flush=True)
    return outcome(archive, found[FAILED], found[NOT_RUN], bool(found[DRAFT]))


def _harmless(text: str) -> str:
    """A text that a plugin may have written, without what a terminal takes for orders."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def outcome(archive: Path, failed: Sequence[str], not_run: Sequence[str], draft: bool) -> int:
    """The last word on a ZIP, and the exit code.

    0: ready. 1: something failed. 3: a draft, and everything else is ok. 4: nothing failed, and something was not run (the network
    did not reach the weights, say).
    """
    if failed or not_run:
        told = "ready to be submitted" if failed else "checked to the end; not run"
        print(f"error: {archive} is not {told}: {'; '.join(failed or not_run)}", file=sys.stderr)
        return BROKEN if failed else UNKNOWN
    print(
        f"draft: {archive} names no place to load its weights from; everything else is ok" if draft else f"ready: {archive}"
    )
    return UNFINISHED if draft else READY


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what contradicts itself is a usage error."""
    p = cli.Parser(prog="python -m cnnf_brain.submit", description=(__doc__ or "").split("\n\n")[0])
    add = p.add_argument
    upload: dict[str, Any] = {"nargs": 2, "metavar": ("PATH", "VERSION_ID")}
    names = "file, or published name (default: as --model has it); beside --check those of the ZIP's plugin, if not recorded"
    spec = "as compare takes it: vgg16, torchvision:NAME, path/to/file.py:function (default: as on the card, else vgg16)"
    add("--weights", metavar="FILE", help=names)
    add("--output", type=Path, metavar="DIR", help="gets IDENTIFIER.zip and IDENTIFIER/ for the CNN-F and the CNN")
    add("--check", type=Path, metavar="ZIP", help="check a ZIP instead")
    add("--stored", **upload, help="where the website's Large File Upload put the weights")
    add("--url", help="address of the weights on a hub, instead of --stored")
    add("--control", metavar="FILE", help="weights of the CNN (default: the same, without feedback)")
    add("--control-stored", **upload)
    add("--control-url", metavar="URL")
    add("--model", help=spec)
    iterations = cli.number(int, {"least": 0})
    add("--iterations", type=iterations, metavar="N", help="default: as trained, else 2; 0 writes the CNN alone")
    add("--name", help="what the identifiers begin with (default: the model)")
    layer = _pair(r"(\w+)=(\S+)", "REGION=LAYER, for instance V4=features.16@2")
    shown: dict[str, Any] = {"metavar": "REGION=LAYER[@T]", "help": "default: Brain-Score's own, at N"}
    add("--regions", nargs="+", type=layer, default=[], **shown)
    bin_ = _pair(r"(\d+)-(\d+)", "START-END in ms, for instance 70-120")
    shown = {"metavar": "START-END", "help": "ms of iterations 0, 1, ... (default 70-120 120-170 ...)"}
    add("--time-bins", nargs="+", type=bin_, **shown)
    unnamed = "no behaviour, for networks without ImageNet's 1000 classes; V1 and V2 may have no layer"
    add("--neural-only", action="store_true", help=unnamed)
    cli.add_flags(p, FeedbackSettings, only=FEEDBACK, defaults=dict.fromkeys(FEEDBACK, "as trained"))
    add("--image-size", type=int, help="default: as trained, else 224")
    add("--device", default=images.AUTO, help="of the first images: auto (a GPU where there is one), cpu, cuda")
    add("--bibtex", type=Path, metavar="FILE", help="reference for the leaderboard (default: the CNN-F paper)")
    args = p.parse_args(argv)
    wrong = _beside_check(p, args) if args.check else _contradiction(args)
    if wrong:
        p.error(wrong)
    return args


def _beside_check(p: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    given = [n for n, v in vars(args).items() if n not in ("check", "weights", "debug") and v != p.get_default(n)]
    flags = [action.option_strings[0] for action in p._actions if action.dest in given]
    return f"{flags[0]}: --check takes --weights alone beside it" if flags else ""


def _contradiction(args: argparse.Namespace) -> str:
    """What contradicts itself in a command that writes; empty where nothing does."""
    if not (args.output and (args.weights or args.model)):
        return "give --weights FILE or --model MODEL, and --output DIR; or --check ZIP"
    if args.stored and args.url:
        return "--stored and --url: give one of them"
    if args.control is None and (args.control_stored or args.control_url):
        return "--control-stored, --control-url: places of --control FILE, which is not given"
    if args.control and args.iterations == 0:
        return "--control: with --iterations 0 the CNN of --weights is all that is written"
    return ""


def _pair(pattern: str, expected: str) -> Callable[[str], tuple[str, str]]:
    """An argparse type: the two groups of ``pattern``."""

    def read(word: str) -> tuple[str, str]:
        match = re.fullmatch(pattern, word)
        if match is None:
            raise argparse.ArgumentTypeError(f"{word!r}: expected {expected}")
        return match[1], match[2]

    return read


if __name__ == "__main__":
    sys.exit(main())
