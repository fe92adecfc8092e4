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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnnf_brain import networks

if TYPE_CHECKING:
    from cnnf_brain.brainscore.request import Plugin

READY, BROKEN, UNFINISHED, UNKNOWN = 0, 1, 3, 4  # exit codes of a check: see ``outcome``
FLAGS = {  # what errors of the library call an argument -> the flag
    "in regions": "with --regions",
    "use another name": "use another --name",
    "give that as the weights": "give that as --weights",
} | {
    name: f"--{name.replace('_', '-')}" for name in ("neural_only", "image_size", "time_bins", "match_norm", "match_layers")
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where all is written or ready, 1 with one line on stderr where it is not, 2 for its flags.

    A check also ends with 3 for a draft, and with 4 where something was not run.
    """
    args = parse(argv)
    # a batch system's end is an interrupt: what it leaves is cleaned up
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return check(args.check, args.weights) if args.check else write(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {in_flags(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the installed brainscore-vision is as it was", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, ended)


def in_flags(message: str) -> str:
    """An error of the library, with flags in place of arguments; names inside a path or a longer name stay."""
    for words, flag in FLAGS.items():
        message = re.sub(rf"(?<![\w/.'-]){words}(?![\w/'-]|\.\w)", flag, message)
    return message


def write(args: argparse.Namespace) -> int:
    """The network's plugin, and with feedback its control's."""
    # first of all, since it says where brainscore-vision is missing
    from cnnf_brain.brainscore.plugin import write_plugins
    from cnnf_brain.brainscore.request import Request, control_of, identify

    bibtex = {"bibtex": args.bibtex.read_text(encoding="utf-8")} if args.bibtex else {}
    request = Request(
        weights=args.weights,
        place=place(args.stored, args.url),
        iterations=args.iterations,
        model=args.model,
        name=args.name,
        regions=dict(args.regions),
        feedback=networks.given_feedback(args),
        time_bins=tuple(args.time_bins) if args.time_bins else None,
        image_size=args.image_size,
        neural_only=args.neural_only,
        device=networks.pick_device(args.device),
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
    from cnnf_brain.brainscore.identity import REGIONS
    from cnnf_brain.brainscore.plugin import title

    identity = plugin.identity
    print(f"{identity.identifier}: {title(identity)}")
    print(f"  {archive} for the website, {folder} for a pull request (brainscore_vision/models/{folder.name})")
    print(f"  regions {_listed(identity.regions)}")
    left_out = [region for region in REGIONS if region not in identity.regions]
    if left_out:
        print(
            f"  left out: {', '.join(left_out)}, for which no layer is known (--regions names one); no benchmark scores it there"
        )
    if identity.iterations:
        bins = " ".join(f"{start}-{end}" for start, end in identity.time_bins)
        carded = "" if plugin.carded else " (the weights have no card: these are yours, or else the defaults)"
        print(f"  feedback {_listed(identity.feedback)}; time bins {bins} ms{carded}")
    if plugin.own:
        print(f"  your code goes into the plugin and becomes public with it: {', '.join(plugin.own.sources)}")
    if identity.weights.draft:
        print(
            "  a draft: it names no place to load its weights from; upload them and add --stored PATH VERSION_ID or --url URL"
        )


def _listed(pairs: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in pairs.items())


def place(stored: Sequence[str] | None, url: str | None) -> dict[str, str]:
    """What the weights' place is called in an identity."""
    return {"stored": stored[0], "version_id": stored[1]} if stored else {"url": url} if url else {}


def check(archive: Path, weights: str | None) -> int:
    """Every stage and every finding on a line of its own, as it comes."""
    from cnnf_brain.brainscore.rehearsal import rehearse
    from cnnf_brain.brainscore.rules import DRAFT, FAILED, NOT_RUN, OK

    path = Path(weights) if weights else recorded_weights(archive)
    print("the plugin's code is run now, with your rights; check a ZIP of strangers in a container", flush=True)
    started = time.time()
    signs = {OK: "  ok", FAILED: "FAIL", NOT_RUN: "   -", DRAFT: "   -"}
    found: dict[str, list[str]] = {status: [] for status in signs}
    for finding in rehearse(archive, path, lambda words: print(f"      {words}", flush=True)):
        found[finding.status].append(finding.rule)
        words = {NOT_RUN: "not run, ", DRAFT: "a draft, "}.get(finding.status, "")
        detail = f": {words}{finding.detail}" if finding.detail else ""
        print(f"{signs[finding.status]}  {finding.rule}{detail}", flush=True)
    counts = ", ".join(f"{len(rules)} {status}" for status, rules in found.items() if rules or status in (OK, FAILED))
    print(f"{counts}; {time.time() - started:.0f} s", flush=True)
    return outcome(archive, found[FAILED], found[NOT_RUN], bool(found[DRAFT]))


def outcome(archive: Path, failed: Sequence[str], not_run: Sequence[str], draft: bool) -> int:
    """The last word on a ZIP, and the exit code.

    0: ready. 1: something failed. 3: a draft, of which everything else is ok. 4: something was not run (the network did not reach
    the weights, say) and nothing failed.
    """
    if failed:
        print(f"error: {archive} is not ready to be submitted: {'; '.join(failed)}", file=sys.stderr)
        return BROKEN
    if not_run:
        print(f"error: {archive} is not checked to the end; not run: {'; '.join(not_run)}", file=sys.stderr)
        return UNKNOWN
    if draft:
        print(f"draft: {archive} names no place to load its weights from; everything else is ok")
        return UNFINISHED
    print(f"ready: {archive}")
    return READY


def recorded_weights(archive: Path) -> Path | None:
    """The weights that were noted beside a ZIP when it was written, if they are still there."""
    from cnnf_brain.brainscore.plugin import read_record
    from cnnf_brain.brainscore.rules import read_submission
    from cnnf_brain.results import RECORD

    known = read_record(archive.parent)
    identifiers = read_submission(archive).identifiers
    recorded = next((known[name] for name in identifiers if name in known), None)
    if recorded is not None and Path(recorded).is_file():
        print(f"weights {recorded} ({archive.parent / RECORD})")
        return Path(recorded)
    print("no weights are given (--weights FILE): they are fetched from the place that the plugin names")
    return None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what contradicts itself is a usage error."""
    p = argparse.ArgumentParser(prog="python -m cnnf_brain.submit", description=(__doc__ or "").split("\n\n")[0])
    add = p.add_argument
    add(
        "--weights",
        metavar="FILE",
        help="file, or published name (default: as --model has it); beside --check those of the ZIP's plugin, if not recorded",
    )
    add("--output", type=Path, metavar="DIR", help="gets IDENTIFIER.zip and IDENTIFIER/ for the CNN-F and the CNN")
    add("--check", type=Path, metavar="ZIP", help="check a ZIP instead")
    add("--stored", nargs=2, metavar=("PATH", "VERSION_ID"), help="where the website's Large File Upload put the weights")
    add("--url", help="address of the weights on a hub, instead of --stored")
    add("--control", metavar="FILE", help="weights of the CNN (default: the same, without feedback)")
    add("--control-stored", nargs=2, metavar=("PATH", "VERSION_ID"))
    add("--control-url", metavar="URL")
    add(
        "--model",
        help="as compare takes it: vgg16, torchvision:NAME, path/to/file.py:function (default: as on the card, else vgg16)",
    )
    add(
        "--iterations",
        type=int,
        metavar="N",
        help="feedback iterations (default: as trained, else 2); 0 writes the CNN alone",
    )
    add("--name", help="what the identifiers begin with (default: the model)")
    add(
        "--regions", nargs="+", type=_region, default=[], metavar="REGION=LAYER[@T]", help="default: Brain-Score's own, at N"
    )
    add(
        "--time-bins",
        nargs="+",
        type=_bin,
        metavar="START-END",
        help="ms of iterations 0, 1, ... (default 70-120 120-170 ...)",
    )
    add(
        "--neural-only",
        action="store_true",
        help="no behaviour, for networks without ImageNet's 1000 classes; V1 and V2 may have no layer",
    )
    add("--target", help="settings of the feedback: as trained unless given")
    add("--step-size", type=float)
    add("--match-norm", action=argparse.BooleanOptionalAction)
    add("--match-layers", action=argparse.BooleanOptionalAction)
    add("--ada-relu", choices=["signed", "printed"])
    add("--image-size", type=int, help="default: as trained, else 224")
    add("--device", default=networks.AUTO, help="of the first images: auto (a GPU where there is one), cpu, cuda")
    add("--bibtex", type=Path, metavar="FILE", help="reference for the leaderboard (default: the CNN-F paper)")
    args = p.parse_args(argv)
    _settle(p, args)
    return args


def _settle(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.check:
        given: list[str] = [n for n, v in vars(args).items() if n not in ("check", "weights") and v != p.get_default(n)]
        if given:
            p.error(f"--{given[0].replace('_', '-')}: --check takes --weights alone beside it")
    elif not (args.output and (args.weights or args.model)):
        p.error("give --weights FILE or --model MODEL, and --output DIR; or --check ZIP")
    if args.iterations is not None and args.iterations < 0:
        p.error(f"--iterations {args.iterations}: expected a whole number, 0 or above")
    if args.stored and args.url:
        p.error("--stored and --url: give one of them")
    if args.control is None and (args.control_stored or args.control_url):
        p.error("--control-stored, --control-url: places of --control FILE, which is not given")
    if args.control and args.iterations == 0:
        p.error("--control: with --iterations 0 the CNN of --weights is all that is written")


def _region(word: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\w+)=(\S+)", word)
    if match is None:
        raise argparse.ArgumentTypeError(f"{word!r}: expected REGION=LAYER, for instance V4=features.16@2")
    return match[1], match[2]


def _bin(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", word)
    if match is None:
        raise argparse.ArgumentTypeError(f"{word!r}: expected START-END in ms, for instance 70-120")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
