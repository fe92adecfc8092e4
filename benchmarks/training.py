"""Time, memory and data path of ImageNet training, each ratio within one run.

    python benchmarks/training.py                          # on the GPU where there is one
    python benchmarks/training.py --part step --compile
    python benchmarks/training.py --part memory
    python benchmarks/training.py --part data --data DIR   # tar shards or folders; without it, JPEGs made for the purpose

step    a training step (losses, gradients, SGD) of VGG-16 CNN-F with N = 1, 2 iterations over (1 + 2N) steps of torchvision's
        VGG-16, taken in turn: at most 1.1. Settings are the trainer's defaults. --compile: both compiled, and CNN-F uncompiled
        beside it: compiled not slower.
memory  peak of a step over N, with and without --checkpoint-iterations, over that of the CNN's own step: at most 1.6 at
        N = 2 with it. Each in a process of its own, above what it holds before the network is made.
data    decoded images a second over numbers of workers, against torchvision's ImageFolder and DataLoader on the same files,
        with the same size, crop and flips, in turn: not slower.
flops   on a GPU: what a step achieves in bfloat16 and channels_last, as a share of the card's measured matrix-multiply peak:
        at least 40 % for CNN-F. --profile, here and with step, writes where the time goes.

Prints tables and writes results/benchmark-training.json; the exit code is 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import datasets, models, transforms
from turns import medians

from cnnf_brain.datasets.image_batches import DiskBatches
from cnnf_brain.datasets.image_index import ImageIndex, index_images
from cnnf_brain.model.zoo import sequential
from cnnf_brain.trainer.config import Recipe
from cnnf_brain.trainer.imagenet import starting_network
from cnnf_brain.trainer.loop import Objective, train_mode

STEP_LIMIT, MEMORY_LIMIT, FLOPS_LIMIT = 1.1, 1.6, 0.4
PARTS = ("step", "memory", "data", "flops")
FEEDBACK = {"target": "input", "step": 1.0, "match_norm": True}


def main() -> int:
    """Measure, print, write."""
    args = arguments()
    if args.one_memory is not None:
        print(json.dumps(memory_of_one(args, *args.one_memory)))
        return 0
    parts: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], bool]]] = {
        "step": step_times,
        "memory": memory,
        "data": data_path,
        "flops": flops,
    }
    path = Path("results", "benchmark-training.json")
    path.parent.mkdir(exist_ok=True)
    figures = json.loads(path.read_text()) if path.exists() else {}
    met = True
    for part in args.part or [part for part in PARTS if part != "flops" or args.device != "cpu"]:
        found, fine = parts[part](args)
        met &= fine
        name = f"{part}, compiled" if part == "step" and args.compile else part
        figures[name] = {
            **found,
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "machine": card(args.device),
            "met": fine,
        }
    path.write_text(json.dumps(figures, indent=2) + "\n")
    return int(not met)


def arguments() -> argparse.Namespace:
    """The flags; sizes depend on the device."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--part", nargs="+", choices=PARTS, help="default all, on a CPU without flops")
    p.add_argument("--arch", default="vgg16")
    p.add_argument("--iterations", type=int, nargs="+", default=[1, 2])
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--batch-size", type=int, help="default 4 on a CPU (16 for memory), 64 on a GPU")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--match-layers", action=argparse.BooleanOptionalAction, default=True, help="as the trainer's default")
    p.add_argument("--profile", action="store_true")
    p.add_argument("--data", type=Path, metavar="DIR")
    p.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--images", type=int, default=4000, help="of the data part")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--one-memory", nargs=2, type=int, help=argparse.SUPPRESS)
    return p.parse_args()


# --- a step ------------------------------------------------------------------------------------------------------------------


def step_of(args: argparse.Namespace, n: int, batch_size: int, *, again: bool = False) -> Callable[[], None]:
    """A training step of the CNN-F with ``n`` iterations as the trainer makes it; ``again``: iterations recomputed."""
    feedback = {"iterations": n, "match_layers": args.match_layers, **FEEDBACK}
    recipe = Recipe(arch=args.arch, weights="none", feedback=feedback, num_classes=1000)
    model, _ = starting_network(recipe)
    objective = Objective(model, recipe.losses, amp=amp(args), recompute=again)
    if args.compile:
        objective.compile()
    return stepping(args, model, batch_size, lambda x, y: objective(x, y)[0])


def step_of_cnn(args: argparse.Namespace, batch_size: int) -> Callable[[], None]:
    """The same for torchvision's network, in plain PyTorch."""
    model = models.get_model(args.arch, weights=None)
    forward = torch.compile(model) if args.compile else model

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(args.device, torch.bfloat16) if amp(args) else contextlib.nullcontext():
            return nn.functional.cross_entropy(forward(x).float(), y)

    return stepping(args, model, batch_size, loss)


def stepping(
    args: argparse.Namespace, model: nn.Module, batch_size: int, loss: Callable[..., torch.Tensor]
) -> Callable[[], None]:
    """Gradients of ``loss`` and SGD on one batch that stays the same."""
    model.to(args.device, memory_format=torch.channels_last)
    train_mode(model)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    x = torch.randn(batch_size, 3, args.image_size, args.image_size, device=args.device)
    x = x.to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (batch_size,), device=args.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(x, y).backward()
        optimizer.step()
        if args.device != "cpu":
            torch.cuda.synchronize()

    return step


def amp(args: argparse.Namespace) -> str | None:
    """bfloat16 on a GPU, as one trains there."""
    return None if args.device == "cpu" else "bfloat16"


def step_times(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Seconds of each step and the ratios."""
    torch.manual_seed(0)
    size = args.batch_size or (4 if args.device == "cpu" else 64)
    steps = {"CNN": step_of_cnn(args, size), **{f"N = {n}": step_of(args, n, size) for n in args.iterations}}
    if args.compile:
        plain = argparse.Namespace(**{**vars(args), "compile": False})
        steps |= {f"N = {n}, uncompiled": step_of(plain, n, size) for n in args.iterations}
    seconds = medians(steps, args.repeats)
    ratios = {n: seconds[f"N = {n}"] / ((1 + 2 * n) * seconds["CNN"]) for n in args.iterations}
    for name, step in steps.items() if args.profile else ():
        profile(step, name, args.device)
    print(f"step: {args.arch}, {size} images, {'compiled, ' if args.compile else ''}{card(args.device)}")
    print(f"  torchvision's CNN {seconds['CNN']:.3f} s")
    for n, ratio in ratios.items():
        print(f"  CNN-F, N = {n}: {seconds[f'N = {n}']:.3f} s, over (1 + 2N) CNN steps {verdict(ratio, STEP_LIMIT)}")
    gains = {n: seconds[f"N = {n}"] / seconds[f"N = {n}, uncompiled"] for n in args.iterations if args.compile}
    for n, gain in gains.items():
        print(f"  compiled over uncompiled, N = {n}: {verdict(gain, 1.0)}")
    found = {"batch_size": size, "seconds": seconds, "ratios": ratios, "compiled over uncompiled": gains}
    return found, max(ratios.values()) <= STEP_LIMIT and max(gains.values(), default=0.0) <= 1


# --- memory ------------------------------------------------------------------------------------------------------------------


def memory(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Peak GiB of a step for each N, with and without recomputed iterations; -1 stands for torchvision's CNN."""
    cases = [(-1, 0), *((n, again) for again in (0, 1) for n in args.iterations)]
    peaks = {}
    for case in cases:
        command = [sys.executable, __file__, *sys.argv[1:], "--one-memory", *map(str, case)]
        peaks[case] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    cnn = peaks[-1, 0]
    size = args.batch_size or 16
    print(f"memory: {args.arch}, {size} images, {card(args.device)}\n  torchvision's CNN {cnn:.2f} GiB")
    for (n, again), peak in list(peaks.items())[1:]:
        print(f"  N = {n}{', iterations recomputed' if again else ''}: {peak:.2f} GiB, {peak / cnn:.2f} times the CNN's")
    ratio = peaks[2, 1] / cnn if (2, 1) in peaks else 0.0
    print(f"  N = 2, recomputed: {verdict(ratio, MEMORY_LIMIT)}")
    named = {f"N={n}{' recomputed' if again else ''}" if n >= 0 else "CNN": peak for (n, again), peak in peaks.items()}
    return {"batch_size": size, "GiB": named}, ratio <= MEMORY_LIMIT


def memory_of_one(args: argparse.Namespace, n: int, again: int) -> float:
    """Peak GiB of two steps in this process: the second has the optimizer's momentum beside it."""
    size = args.batch_size or (16 if args.device == "cpu" else 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = step_of_cnn(args, size) if n < 0 else step_of(args, n, size, again=bool(again))
    for _ in range(2):
        step()
    if args.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30


# --- data --------------------------------------------------------------------------------------------------------------------


def data_path(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Images a second of both, over workers."""
    with tempfile.TemporaryDirectory() as scratch:
        index, _ = index_images(args.data or made(Path(scratch, "made"), args.images))
        folder = unpacked(index, Path(scratch, "files"), args.images)
        flat, _ = index_images(folder.parent)
        ways: dict[str, Callable[[int], Iterator[int]]] = {
            "ours, as given": lambda w: loaded(index, args.image_size, w),
            "ours, folders": lambda w: loaded(flat, args.image_size, w),
            "ImageFolder": lambda w: (len(y) for _, y in image_folder(folder, args.image_size, w)),
        }
        rates: dict[str, dict[str, float]] = {}
        for workers in args.workers:
            rates[str(workers)] = rate(ways, workers, args.images, max(args.repeats // 2, 2))
    print(f"data: {args.images} images of {args.data or 'noise, 500 x 375'}, shown at {args.image_size} pixels, images/s")
    worst = np.inf
    for workers_, found in rates.items():
        ratio = min(found["ours, as given"], found["ours, folders"]) / found["ImageFolder"]
        worst = min(worst, ratio)
        print(
            f"  {workers_} workers: "
            + ", ".join(f"{way} {value:.0f}" for way, value in found.items())
            + f", ratio {ratio:.2f}"
        )
    print(f"  the smallest ratio, {worst:.2f}, is to be at least 1: {'met' if worst >= 1 else 'NOT MET'}")
    return {"images_per_second": rates, "smallest_ratio": float(worst)}, bool(worst >= 1)


def rate(ways: dict[str, Callable[[int], Iterator[int]]], workers: int, n: int, repeats: int) -> dict[str, float]:
    """Best images a second of each way, taken in turn; the start of the workers counts."""
    best = dict.fromkeys(ways, 0.0)
    for _ in range(repeats):
        for name, way in ways.items():
            started, seen, batches = time.perf_counter(), 0, way(workers)
            while seen < n:
                seen += next(batches)
            del batches
            best[name] = max(best[name], seen / (time.perf_counter() - started))
    return best


def loaded(index: ImageIndex, size: int, workers: int) -> Iterator[int]:
    """The numbers of images in our batches of 64."""
    batches = DiskBatches(index=index, size=size, batch_size=64, workers=workers).batches()
    return (len(batch.labels) for batch in batches)


def image_folder(folder: Path, size: int, workers: int) -> Iterator[Any]:
    """torchvision's way: the shorter side to ``size``, the middle, a flip, normalised; shuffled, epoch after epoch."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = [
        transforms.Resize(size),
        transforms.CenterCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    while True:
        yield from torch.utils.data.DataLoader(images, 64, shuffle=True, num_workers=workers)


def unpacked(index: Any, folder: Path, n: int) -> Path:
    """The first ``n`` images of ``index`` as train/<class>/<file>, and one of them as validation."""
    for i in range(min(n, len(index))):
        for part in ("train", "val") if i == 0 else ("train",):
            path = folder / part / index.classes[index.labels[i]] / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(index.read(i))
    return folder / "train"


def made(folder: Path, n: int) -> Path:
    """``n`` JPEGs of ImageNet's usual size, smooth noise, in ten classes."""
    random = np.random.default_rng(0)
    for i in range(n):
        for part in ("train", "val") if i < 10 else ("train",):
            path = folder / part / f"n{i % 10:08d}" / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(random.integers(0, 256, (47, 63, 3), dtype=np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


# --- a GPU's share of its peak -------------------------------------------------------------------------------------------------


def flops(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """TFLOP/s of the CNN's and the CNN-F's step (three times the multiplications of its passes) and of matrix products."""
    size = args.batch_size or 128
    per_image = flops_of_pass(args)
    peak = matmul_peak(args.device)
    achieved = {}
    for name, n in (("CNN", 0), *((f"N = {n}", n) for n in args.iterations)):
        step = step_of(args, n, size)
        seconds = medians({name: step}, args.repeats)[name]
        achieved[name] = 3 * (1 + 2 * n) * per_image * size / seconds
        if args.profile:
            profile(step, name, args.device)
        del step
    print(f"flops: {args.arch}, {size} images, {card(args.device)}; matrix products reach {peak / 1e12:.0f} TFLOP/s")
    for name, value in achieved.items():
        print(f"  {name}: {value / 1e12:.0f} TFLOP/s, {100 * value / peak:.0f} % of it")
    least = min(value for name, value in achieved.items() if name != "CNN") / peak
    print(f"  the least of CNN-F, to be at least {FLOPS_LIMIT:.0%}: {'met' if least >= FLOPS_LIMIT else 'NOT MET'}")
    return {"batch_size": size, "peak": peak, "achieved": achieved}, least >= FLOPS_LIMIT


def flops_of_pass(args: argparse.Namespace) -> float:
    """Multiplications and additions of convolutions and matrices in one feedforward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sequential(args.arch, 1000)(torch.zeros(1, 3, args.image_size, args.image_size))
    return float(counter.get_total_flops())


def matmul_peak(device: str) -> float:
    """FLOP/s of the fastest of some square products in bfloat16."""
    best = 0.0
    for n in (256,) if device == "cpu" else (4096, 8192, 16384):  # on a CPU to rehearse
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                a @ b
            if device != "cpu":
                torch.cuda.synchronize()

        best = max(best, 10 * 2 * n**3 / medians({"": product}, 5)[""])
    return best


def profile(step: Callable[[], None], name: str, device: str) -> None:
    """Where the time of a step goes, as results/profile-NAME.txt."""
    with torch.profiler.profile() as found:  # of all that there is
        step()
    text = found.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30)
    Path("results", f"profile-{name.replace(' ', '')}.txt").write_text(text)


def card(device: str) -> str:
    """The machine in words."""
    return (
        torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    )


def verdict(ratio: float, limit: float) -> str:
    """The ratio and whether it keeps to its limit."""
    return f"{ratio:.3f} (at most {limit}: {'met' if ratio <= limit else 'NOT MET'})"


if __name__ == "__main__":
    sys.exit(main())
