"""PGD-40 on 1000 images: this package against foolbox, torchattacks and the Adversarial Robustness Toolbox, in one run.

    python benchmarks/attacks.py

All attack the same small CNN (random weights, in evaluation mode) with the same epsilon, step size and number of steps from the
same kind of random start, each in the batches in which it is fastest of those tried (32 to 250 images); ours also on the network
in channels_last, and on that compiled (a library gains as much from these forms). They take turns; each counts with its fastest
run. Ours must not be slower than the fastest library, and 1.5 times faster in the best form of the network. Success rates are
printed beside, for a fast attack that is weak is none. Prints a table and writes results/benchmark-attacks.json; the exit code is
1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain import results, small_net
from cnnf_brain.attacks import PGD, Threat

EPSILON, STEP = 0.1, 0.01
BATCHES = (32, 64, 128, 250)
LIMIT_PLAIN, LIMIT_BEST = 1.0, 1.5


class Scaled(nn.Module):
    """The network on images in [0, 1], whatever memory format it prefers."""

    def __init__(self, network: nn.Module, memory_format: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        self.network, self.memory_format = network.to(memory_format=memory_format), memory_format

    def forward(self, x: Tensor) -> Tensor:
        return self.network((2 * x - 1).contiguous(memory_format=self.memory_format))


Run = Callable[[Tensor, Tensor, int], Tensor]


def main() -> int:
    """Measure, print, write."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--images", type=int, default=1000)
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    args = p.parse_args()
    torch.manual_seed(0)
    network = Scaled(small_net(iterations=0)).eval().requires_grad_(False)  # a compiled one would have their gradients too
    images = torch.rand(args.images, 1, 28, 28)
    with torch.no_grad():
        labels = network(images).argmax(1)
    runs = {**ours(network, args.steps, not args.no_compile), **libraries(network, args.steps)}
    sizes = {name: fastest_size(run, images, labels, args.images) for name, run in runs.items()}
    best, success = dict.fromkeys(runs, float("inf")), dict.fromkeys(runs, 0.0)
    for _ in range(args.repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            made = run(images, labels, sizes[name])
            best[name] = min(best[name], time.perf_counter() - started)
            with torch.no_grad():
                success[name] = (network(made).argmax(1) != labels).double().mean().item()
    print(f"PGD-{args.steps} on {args.images} images, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in sorted(best, key=lambda name: best[name]):
        print(f"{name:>28}: {best[name]:7.2f} s in batches of {sizes[name]:4d}, success {100 * success[name]:.1f} %")
    plain, fast = compared(best)
    figures = {"seconds": best, "batches": sizes, "success": success, "plain": plain, "best": fast}
    about = {"machine": results.machine(torch.device("cpu")), "torch": torch.__version__, **vars(args)}
    Path("results").mkdir(exist_ok=True)
    Path("results", "benchmark-attacks.json").write_text(json.dumps({**figures, **about}, indent=2, default=str) + "\n")
    return int(plain < LIMIT_PLAIN or fast < LIMIT_BEST)


def compared(best: dict[str, float]) -> tuple[float, float]:
    """How many times faster than the fastest library our attack is, and our attack on the best form of the network."""
    mine = {name: value for name, value in best.items() if name.startswith("cnnf-brain")}
    peer, name = min((value, name) for name, value in best.items() if name not in mine)
    plain, fast = peer / mine["cnnf-brain"], peer / min(mine.values())
    print(f"fastest library ({name}) over ours: {plain:.2f} (at least {LIMIT_PLAIN:g})", end="")
    print(f", over our best form {fast:.2f} (at least {LIMIT_BEST:g})")
    return plain, fast


def fastest_size(run: Run, images: Tensor, labels: Tensor, n: int) -> int:
    """The batch size that a run is fastest with, tried twice on an eighth of the images (at least one batch)."""
    tried: dict[int, float] = {}
    for size in (size for size in BATCHES if size <= n):
        few = slice(0, max(size, n // 8))
        run(images[:size], labels[:size], size)  # warm-up, and compilation
        times = []
        for _ in range(2):
            started = time.perf_counter()
            run(images[few], labels[few], size)
            times.append(time.perf_counter() - started)
        tried[size] = min(times) / len(images[few])
    return min(tried, key=lambda size: tried[size])


def ours(network: Scaled, steps: int, compiled: bool) -> dict[str, Run]:
    """This package's PGD on the network as it is, in channels_last, and that compiled."""
    forms: dict[str, nn.Module] = {"cnnf-brain": network}
    last = Scaled(copy.deepcopy(network.network), torch.channels_last).eval()
    forms["cnnf-brain, channels_last"] = last
    if compiled:
        forms["cnnf-brain, compiled"] = torch.compile(copy.deepcopy(last))  # type: ignore[assignment]

    def attack(form: nn.Module) -> Run:
        threat = Threat("network", form, form)
        workers = torch.get_num_threads()
        return lambda x, y, size: PGD(steps, STEP, batch_size=size, workers=workers)(threat, x, y, [EPSILON]).clipped[0]

    return {name: attack(form) for name, form in forms.items()}


def libraries(network: nn.Module, steps: int) -> dict[str, Run]:
    """The peers' PGD; those that are not installed are left out, two are needed."""
    found: dict[str, Run] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox imports what SciPy has moved
        for name, make in (("foolbox", by_foolbox), ("torchattacks", by_torchattacks), ("toolbox (ART)", by_toolbox)):
            try:
                found[name] = make(network, steps)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
    if len(found) < 2:
        raise SystemExit("error: two libraries are needed: pip install -r benchmarks/requirements.txt")
    return found


def in_batches(attack: Callable[[Tensor, Tensor], Tensor]) -> Run:
    """Images in batches through a library's attack."""
    return lambda x, y, size: torch.cat([attack(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])


def by_foolbox(network: nn.Module, steps: int) -> Run:
    """foolbox's LinfPGD."""
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=True)
    return in_batches(lambda x, y: attack(model, x, y, epsilons=EPSILON)[1])


def by_torchattacks(network: nn.Module, steps: int) -> Run:
    """torchattacks' PGD."""
    import torchattacks

    return in_batches(torchattacks.PGD(network, eps=EPSILON, alpha=STEP, steps=steps, random_start=True))


def by_toolbox(network: nn.Module, steps: int) -> Run:
    """The Adversarial Robustness Toolbox's PGD for PyTorch."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    peer = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu")

    def attack(x: Tensor, y: Tensor, size: int) -> Tensor:
        options: dict[str, Any] = {"eps": EPSILON, "eps_step": STEP, "max_iter": steps, "num_random_init": 1}
        made = ProjectedGradientDescentPyTorch(peer, batch_size=size, verbose=False, **options)
        return torch.as_tensor(made.generate(x.numpy(), np.asarray(y)))

    return attack


if __name__ == "__main__":
    sys.exit(main())
