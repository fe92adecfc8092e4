"""Time of CNN-F's forward pass against the plain VGG-16's, in one run.

    python benchmarks/inference.py

torchvision's VGG-16 and ``cnnf_brain.vgg16`` with t = 0, 1, 2 iterations on the same random images at 224 x 224 with the
same random weights, in evaluation mode, the repeats taken in turn, both in both memory formats; each network counts in its
faster one. The ratio, of medians, is CNN-F's time over (1 + 2t) times the plain network's, to be at most 1.15. Beside it the
peak memory of a pass above what is resident before it (Linux alone tells). Prints a table and writes
results/benchmark-inference.json; the exit code is 1 where the limit is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import models
from turns import medians

import cnnf_brain

LIMIT = 1.15
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def main() -> int:
    """Measure, print, write."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--iterations", type=int, nargs="+", default=[0, 1, 2])
    args = p.parse_args()
    torch.manual_seed(0)
    plain = models.vgg16(weights=None).eval()
    model = cnnf_brain.vgg16(match_norm=False, match_layers=False).eval()  # Algorithm 1 as printed
    model.load_state_dict(plain.state_dict())
    times: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, float | None]] = {}
    for name, memory_format in FORMATS.items():
        x = torch.randn(args.batch_size, 3, 224, 224).to(memory_format=memory_format)
        plain.to(memory_format=memory_format)
        model.to(memory_format=memory_format)
        runs: dict[str, Callable[[], object]] = {"plain": lambda x=x: plain(x)}
        runs.update({str(t): lambda x=x, t=t: model(x, iterations=t) for t in args.iterations})
        with torch.inference_mode():
            times[name] = medians(runs, args.repeats)
        memory[name] = {run: peak_memory(function) for run, function in runs.items()}
    best = {run: min(times[name][run] for name in FORMATS) for run in times["channels_last"]}
    ratios = {t: best[str(t)] / ((1 + 2 * t) * best["plain"]) for t in args.iterations}
    print(f"{args.batch_size} images, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for run in best:
        row = ", ".join(f"{name} {times[name][run]:.2f} s{shown(memory[name][run])}" for name in FORMATS)
        ratio = "" if run == "plain" else f"  over (1 + 2t) plain passes: {ratios[int(run)]:.3f}"
        print(f"{'plain VGG-16' if run == 'plain' else f'CNN-F, t = {run}':>14}: {row}{ratio}")
    worst = max(ratios.values())
    print(f"largest ratio {worst:.3f} (at most {LIMIT}: {'met' if worst <= LIMIT else 'NOT MET'})")
    Path("results").mkdir(exist_ok=True)
    machine = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "machine": platform.platform()}
    figures = {"seconds": times, "ratios": ratios, "peak_megabytes": memory, **machine, **vars(args)}
    Path("results", "benchmark-inference.json").write_text(json.dumps(figures, indent=2) + "\n")
    return int(worst > LIMIT)


@torch.inference_mode()
def peak_memory(run: Callable[[], object]) -> float | None:
    """Megabytes by which resident memory rises at the most while ``run`` runs; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        run()
        return resident("VmHWM") - before
    except OSError:
        return None


def resident(line: str) -> float:
    """Megabytes of one line of the process's status."""
    (found,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(line)]
    return int(found.split()[1]) / 1024


def shown(megabytes: float | None) -> str:
    """Memory as it stands in the table."""
    return "" if megabytes is None else f" {megabytes:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
