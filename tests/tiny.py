"""Images, recordings and networks so small that a whole comparison takes a second."""

from __future__ import annotations

import io
import multiprocessing
import resource
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from PIL import Image
from torch import nn

from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.recordings import write_assembly
from cnnf_brain.types import Images

SIZE = 16
LAYERS = ("conv1", "relu1", "conv2", "relu2", "pool2", "flat", "fc")

# A network of one's own, as --model path/to/file.py:function takes it.
FILE = """
import torch
from torch import nn
from cnnf_brain.images import Preprocessing

class Net(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.gain = gain
        self.preprocessing = Preprocessing(16)
        self.regions = {"V4": "first", "IT": "second"}

    def forward(self, x):
        return self.second(self.act(self.gain * self.first(x)))

def net(seed=0, gain=1.0):
    torch.manual_seed(seed)
    return Net(gain)

def other():
    return net(seed=1)

def louder():
    return net(gain=3.0)

def same():
    return net()

def dead():
    made = net()
    nn.init.zeros_(made.second.weight)
    return made

def exploding():
    return net(gain=float("inf"))

def feedback():
    from cnnf_brain import CNNF
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(294, 12))
    made = CNNF(layers, iterations=1, match_norm=True)
    made.preprocessing = Preprocessing(16)
    made.regions = {"V4": "2", "IT": "4"}
    return made

class Spoiled(nn.Module):
    # rows that do not belong to images, in four ways
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6, track_running_stats=False) if how == "batch" else nn.Identity()
        self.tokens = nn.Identity()
        self.out = nn.Identity()
        self.preprocessing = Preprocessing(16)

    def train(self, mode=True):
        return super().train(mode or self.how == "stays")

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.how == "dropped":
            y = nn.functional.dropout(y, 0.5)
        self.tokens(y.flatten(2).permute(2, 0, 1))  # as transformers without batch_first
        return self.out(y)

def tokens():
    return Spoiled("tokens")

def dropped():
    return Spoiled("dropped")

def stays():
    return Spoiled("stays")

def batch():
    return Spoiled("batch")

def broken():
    raise RuntimeError("no such luck")

def wrong():
    return 7

not_a_function = 3
"""


def processes(work: Callable[[int], object], n: int) -> list[int]:
    """``work(0)`` to ``work(n - 1)`` at once, each in a process of its own; their exit codes, a signal's as its negative."""
    started = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in range(n)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: other threads of this process do not go along
        for process in started:
            process.start()
    for process in started:
        process.join()
    return [process.exitcode or 0 for process in started]


def grown(work: Callable[[], object]) -> int:
    """Bytes by which the memory of a process grows at most while it does ``work``."""
    with tempfile.TemporaryFile() as file:

        def measured(_: int) -> None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            work()
            file.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}".encode())
            file.flush()

        assert processes(measured, 1) == [0]
        file.seek(0)
        return 1024 * int(file.read())


def pictures(n: int, seed: int = 0, size: int = 20) -> npt.NDArray[Any]:
    """(n, size, size, 3) uint8: smooth random pictures."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in coarse])


def encoded(pixels: npt.NDArray[Any]) -> bytes:
    """One picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def images(n: int = 12, seed: int = 0) -> Images:
    """n pictures in memory."""
    content = [encoded(one) for one in pictures(n, seed)]
    return Images(tuple(f"image{i:03}" for i in range(n)), lambda i: content[i], "memory")


def layers(seed: int = 0) -> nn.Sequential:
    """A small CNN of random weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 8, 3),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc=nn.Linear(8 * 36, 5),
        )
    )


def network(seed: int = 0, iterations: int = 2, size: int = SIZE, **feedback: Any) -> Network:
    """A small CNN-F, or with 0 iterations its CNN."""
    settings = {"match_norm": True, **feedback} if iterations else feedback
    module = CNNF(layers(seed), iterations=iterations, **settings).eval()
    return Network(module, Preprocessing(size), {"V4": "relu1", "IT": "pool2"}, name="tiny", weights="random")


def recordings(
    folder: Path,
    region: str = "V4",
    n_images: int = 40,
    n_sites: int = 6,
    *,
    seed: int = 0,
    n_repeats: int = 0,
    constant: int = 0,
    image_seed: int = 0,
    name: str | None = None,
) -> Path:
    """An assembly file: sites that weigh the colours of the pictures' quarters, with noise; ``constant`` more never respond."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = pictures(n_images, image_seed)
    files = []
    for number, one in enumerate(shown):
        files.append(folder / f"picture{number:03}.png")
        files[-1].write_bytes(encoded(one))
    rng = np.random.default_rng(seed)
    quarters = shown.reshape(n_images, 2, 10, 2, 10, 3).mean(axis=(2, 4)).reshape(n_images, -1) / 255 - 0.5
    signal = np.maximum(10 * quarters @ rng.standard_normal((12, n_sites)), 0)
    signal = np.hstack([signal, np.zeros((n_images, constant))])
    noise = 0.3 * rng.standard_normal((*signal.shape, max(1, n_repeats)))
    noise[:, n_sites:] = 0
    repeats = signal[..., None] + noise
    path = folder / (name or f"{region}.nc")
    if n_repeats:
        return write_assembly(path, repeats, files, region=region)
    return write_assembly(path, repeats[..., 0], files, region=region)


def scores(path: Path) -> xr.Dataset:
    """A scores.nc in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # xarray 2022 looks for its engines in an old way
        with xr.open_dataset(path, engine="netcdf4") as file:
            return file.load()
