"""Training step of the small CNN-F-k against (1 + 2k) times the CNN's, in one run.

    python benchmarks/small_net.py

One step is losses, gradients and Adam's update on the same random images, as training/mnist.py makes it (in channels_last, and in
bfloat16 with --amp bfloat16). A CNN-F-k makes 1 + 2k passes where the CNN makes one, so that the ratio of a step's time to (1 + 2k)
CNN steps is what feedback itself costs; it is to be at most 1.15. The networks take their turns; each counts with its fastest step.
Prints a table and writes results/benchmark-small-net.json; the exit code is 1 where the limit is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from turns import in_turn

from cnnf_brain import results, small_net
from cnnf_brain.trainer.config import LossWeights
from cnnf_brain.trainer.loop import Objective

LIMIT = 1.15


def main() -> int:
    """Measure, print, write."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--repeats", type=int, default=10)
    p.add_argument("--amp", choices=["bfloat16"])
    p.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3, 5])
    args = p.parse_args()
    images = torch.rand(args.batch_size, 1, 28, 28) * 2 - 1
    labels = torch.arange(args.batch_size) % 10
    steps = {n: step(n, images, labels, args.amp) for n in (0, *args.iterations)}
    best = {n: min(values) for n, values in in_turn(steps, args.repeats).items()}
    ratios = {n: best[n] / ((1 + 2 * n) * best[0]) for n in args.iterations}
    print(f"{args.batch_size} images, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'CNN':>8}: {1000 * best[0]:7.1f} ms")
    for n, ratio in ratios.items():
        print(f"{f'CNN-F-{n}':>8}: {1000 * best[n]:7.1f} ms  over (1 + 2k) CNN steps: {ratio:.3f}")
    worst = max(ratios.values())
    print(f"largest ratio {worst:.3f} (at most {LIMIT}: {'met' if worst <= LIMIT else 'NOT MET'})")
    Path("results").mkdir(exist_ok=True)
    figures = {
        "seconds": best,
        "ratios": ratios,
        "machine": results.machine(torch.device("cpu")),
        "torch": torch.__version__,
    }
    Path("results", "benchmark-small-net.json").write_text(
        json.dumps({**figures, **vars(args)}, indent=2, default=str) + "\n"
    )
    return int(worst > LIMIT)


def step(iterations: int, images: torch.Tensor, labels: torch.Tensor, amp: str | None):
    """A function that makes one training step."""
    torch.manual_seed(0)
    feedback = (
        {"iterations": iterations, "target": "input", "step": 0.1, "match_norm": True} if iterations else {"iterations": 0}
    )
    model = small_net(**feedback).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-4)
    objective = Objective(model, LossWeights() if iterations else LossWeights(0.0, 0.0, 0.0), amp=amp)

    def made() -> None:
        optimizer.zero_grad(set_to_none=True)
        total, _ = objective(images, labels)
        total.backward()
        optimizer.step()

    return made


if __name__ == "__main__":
    sys.exit(main())
