"""Write the Brain-Score plugins of a CNN-F and of its CNN control, and check a ZIP before it is uploaded.

    python -m cnnf_brain.submit --weights FILE --output DIR      # a ZIP and a folder for each identifier
    python -m cnnf_brain.submit --check ZIP                      # all that can be checked offline

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

from cnnf_brain import files, networks
from cnnf_brain.model.weights import read_card


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 where all is written or holds, 1 with one line on stderr where it does not, 2 for its flags."""
    args = parse(argv)
    # a batch system's end is an interrupt: what it leaves is cleaned up
    ended = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return check(args.check, args.weights) if args.check else write(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the installed brainscore-vision is as it was", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, ended)


def write(args: argparse.Namespace) -> int:
    """The CNN-F's plugin and its control's."""
    from cnnf_brain.brainscore.plugin import Request, control_of, identify, title, write_plugin, write_record

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
        requires=args.requires,
        **bibtex,
    )
    files.check_writable(args.output)
    requests, identities = [request], [identify(request)]
    if identities[0].iterations:
        requests.append(control_of(request, args.control, place(args.control_stored, args.control_url)))
        identities.append(identify(requests[1]))
    elif args.control:
        raise ValueError(f"--control {args.control}: {args.weights} run no feedback, so they are the CNN themselves")
    for one, identity in zip(requests, identities, strict=True):
        folder, archive = write_plugin(identity, args.output, one.requires, one.bibtex)
        print(f"{identity.identifier}: {title(identity)}")
        print(f"  {archive} for the website, {folder} for a pull request (brainscore_vision/models/{folder.name})")
        print(f"  regions {_listed(identity.regions)}")
        if identity.iterations:
            bins = " ".join(f"{start}-{end}" for start, end in identity.time_bins)
            carded = "" if read_card(one.weights) else " (the weights have no card: these are yours, or else the defaults)"
            print(f"  feedback {_listed(identity.feedback)}; time bins {bins} ms{carded}")
        if identity.weights.draft:
            print(
                "  a draft: it names no place to load its weights from; upload them and add --stored PATH VERSION_ID or --url URL"
            )
    write_record(args.output, {i.identifier: Path(one.weights) for one, i in zip(requests, identities, strict=True)})
    wanted = args.requires or f"cnnf-brain=={identities[0].version}"
    print(f"requirements.txt asks for {wanted}: Brain-Score's machines must find that (--requires names another place)")
    return 0


def _listed(pairs: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in pairs.items())


def place(stored: Sequence[str] | None, url: str | None) -> dict[str, str]:
    """What the weights' place is called in an identity."""
    return {"stored": stored[0], "version_id": stored[1]} if stored else {"url": url} if url else {}


def check(archive: Path, weights: Path | None) -> int:
    """Every finding on a line of its own, as it comes."""
    from cnnf_brain.brainscore.plugin import RECORD, read_record
    from cnnf_brain.brainscore.rehearsal import rehearse
    from cnnf_brain.brainscore.rules import read_submission

    if weights is None:
        identifiers = read_submission(archive).identifiers
        known = read_record(archive.parent)
        recorded = next((Path(known[name]) for name in identifiers if name in known), None)
        if recorded is not None and recorded.is_file():
            weights = recorded
            print(f"weights {weights} ({archive.parent / RECORD})")
        else:
            print("no weights are given (--weights FILE): the plugin fetches them from the place that it names")
    started, counts = time.time(), {True: 0, False: 0, None: 0}
    signs = {True: "  ok", False: "FAIL", None: "   -"}
    broken = []
    for finding in rehearse(archive, weights):
        counts[finding.holds] += 1
        broken += [finding.rule] * (finding.holds is False)
        print(
            f"{signs[finding.holds]}  {finding.rule.rstrip('.')}{f': {finding.detail}' if finding.detail else ''}",
            flush=True,
        )
    seconds = f"{time.time() - started:.0f} s"
    print(f"{counts[True]} ok, {counts[False]} failed, {counts[None]} not run; {seconds}", flush=True)
    if broken:
        print(
            f"error: {archive} is not ready to be submitted: {'; '.join(rule.rstrip('.') for rule in broken)}",
            file=sys.stderr,
        )
    return 1 if broken or counts[None] else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what contradicts itself is a usage error."""
    p = argparse.ArgumentParser(prog="python -m cnnf_brain.submit", description=(__doc__ or "").split("\n\n")[0])
    add = p.add_argument
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="of the CNN-F; beside --check those of the ZIP's plugin, if not recorded",
    )
    add("--output", type=Path, metavar="DIR", help="gets IDENTIFIER.zip and IDENTIFIER/ for the CNN-F and the CNN")
    add("--check", type=Path, metavar="ZIP", help="check a ZIP instead")
    add("--stored", nargs=2, metavar=("PATH", "VERSION_ID"), help="where the website's Large File Upload put the weights")
    add("--url", help="address of the weights on a hub, instead of --stored")
    add("--control", type=Path, metavar="FILE", help="weights of the CNN (default: the same, without feedback)")
    add("--control-stored", nargs=2, metavar=("PATH", "VERSION_ID"))
    add("--control-url", metavar="URL")
    add("--model", help="vgg16, alexnet, small, ... (default: as on the weights' card, else vgg16)")
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
    add("--neural-only", action="store_true", help="no behaviour, for networks without ImageNet's 1000 classes")
    add("--target", help="settings of the feedback: as trained unless given")
    add("--step-size", type=float)
    add("--match-norm", action=argparse.BooleanOptionalAction)
    add("--match-layers", action=argparse.BooleanOptionalAction)
    add("--ada-relu", choices=["signed", "printed"])
    add("--image-size", type=int, help="default: as trained, else 224")
    add("--requires", metavar="REQUIREMENT", help="line of requirements.txt, e.g. 'cnnf-brain @ git+https://...@COMMIT'")
    add("--bibtex", type=Path, metavar="FILE", help="reference for the leaderboard (default: the CNN-F paper)")
    args = p.parse_args(argv)
    _settle(p, args)
    return args


def _settle(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.check:
        given: list[str] = [n for n, v in vars(args).items() if n not in ("check", "weights") and v not in (None, [], False)]
        if given:
            p.error(f"--{given[0].replace('_', '-')}: --check takes --weights alone beside it")
    elif not (args.weights and args.output):
        p.error("give --weights FILE --output DIR, or --check ZIP")
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
