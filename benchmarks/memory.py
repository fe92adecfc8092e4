"""Peak memory, scratch space and time of streaming VGG-16's features into their products.

    python benchmarks/memory.py                    # five pooling layers, iterations 0 to 2, 1200 images
    python benchmarks/memory.py --images 100

VGG-16 with random weights and random images at 224 x 224: neither memory nor time depends on their values. The cache is a
temporary folder. Prints a table and writes results/benchmark-memory.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

POOLS = ("features.4", "features.9", "features.16", "features.23", "features.30")


def main() -> None:
    """Run once, print and write the figures."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--images", type=int, default=1200)
    p.add_argument("--layers", nargs="+", default=list(POOLS))
    p.add_argument("--iterations", type=int, default=2)
    p.add_argument("--batch-size", type=int, default=8)
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="cnnf-memory-") as cache:
        os.environ["CNNF_BRAIN_CACHE"] = cache
        figures = measure(args, Path(cache))
    for name, value in figures.items():
        print(f"{name:>28}: {value}")
    Path("results").mkdir(exist_ok=True)
    Path("results", "benchmark-memory.json").write_text(json.dumps({**vars(args), **figures}, indent=2) + "\n")


def measure(args: argparse.Namespace, cache: Path) -> dict[str, float]:
    """The figures of one run in this process."""
    import cnnf_brain
    from cnnf_brain.images import Preprocessing
    from cnnf_brain.networks import Network
    from cnnf_brain.products import layer_products
    from cnnf_brain.types import LayerAt

    torch.manual_seed(0)
    model = cnnf_brain.vgg16(iterations=args.iterations, match_norm=True, step=0.1).eval()
    network = Network("vgg16 CNN-F", model.to(memory_format=torch.channels_last), Preprocessing(224), "random")
    layers = [LayerAt(name, t) for name in args.layers for t in range(args.iterations + 1)]
    scratch = Watch(cache / "scratch")
    started = time.time()
    found = layer_products(network, random_images(args.images), layers, batch_size=args.batch_size)
    seconds = time.time() - started
    return {
        "features per image": sum(product.n_features for product in found.values()),
        "peak resident GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "peak scratch GiB": round(scratch.stop() / 2**30, 2),
        "seconds": round(seconds, 1),
    }


def random_images(n: int) -> cnnf_brain.types.Images:  # noqa: F821
    """n images of noise as PNG."""
    from cnnf_brain.types import Images

    def read(i: int) -> bytes:
        pixels = np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return Images(tuple(f"noise-{i}" for i in range(n)), read, "noise")


class Watch:
    """The largest size that a folder had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.largest, self.over = folder, 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.over.wait(0.5):
            used = 0
            for path in self.folder.rglob("*"):
                try:
                    used += path.stat().st_size
                except OSError:  # removed in between
                    continue
            self.largest = max(self.largest, used)

    def stop(self) -> int:
        """Bytes at the most."""
        self.over.set()
        self.thread.join()
        return self.largest


if __name__ == "__main__":
    if shutil.disk_usage(tempfile.gettempdir()).free < 2**30:
        raise SystemExit("less than 1 GiB free for temporary files; set TMPDIR to a larger disk")
    main()
