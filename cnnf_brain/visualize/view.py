"""What the parts of Figure 9 share: a CNN-F that sees images in [0, 1], the images, means with intervals, and the computed part."""

from __future__ import annotations

import math
import shutil
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from torch import Tensor

from cnnf_brain import results, style
from cnnf_brain.attacks import threats
from cnnf_brain.attacks.gradient import PGD, Threat
from cnnf_brain.checks import running
from cnnf_brain.io import array_hash, short_hash, write_csv, write_json, write_netcdf, write_text
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.settings import INPUT
from cnnf_brain.networks import Network
from cnnf_brain.report import NotDrawnError, attempt
from cnnf_brain.report.runs import Claim, Figure, TableChart, markdown, markdown_table

BATCH = 64
SHOWN = 4  # examples of each kind
LEAST = 200  # images that the intervals were planned for
EPSILONS = (0.02, 0.05, 0.1)  # of PGD-40

Array = NDArray[Any]
Row = dict[str, Any]
Data = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class Seen:
    """What the network made of n images at iterations 0..N: ``classes`` (N+1, n), its decisions.

    ``inputs`` (N+1, n, C, H, W): the image that each iteration saw. ``reconstructions``: what feedback generated for it (norm
    matched, before the step). Entry 0 of both is the image itself. In units of [0, 1], not clipped; empty where not asked for.
    """

    classes: Tensor
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    reconstructions: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class View:
    """A network with feedback on images in [0, 1], which enter it normalised; a ValueError without feedback or in training mode."""

    network: Network
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        module = self.network.module
        if not isinstance(module, CNNF) or module.iterations == 0:
            what = "runs 0 iterations" if isinstance(module, CNNF) else f"is a {type(module).__name__}"
            raise ValueError(f"the network has no feedback to see: it {what}; give a CNNF with iterations >= 1")
        if module.training:
            raise ValueError("the network is in training mode; call .eval() on it first")

    @property
    def model(self) -> CNNF:
        """The network's module."""
        assert isinstance(self.network.module, CNNF)
        return self.network.module

    def enter(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the network's units, on its device."""
        return self.network.preprocessing.normalise(images.to(self.network.device))

    def leave(self, seen: Tensor) -> Tensor:
        """The network's units to those of images, not clipped to [0, 1]."""
        return self.network.preprocessing.denormalise(seen)

    def check(self, images: Tensor, labels: Tensor | None = None, *, restores: bool = False) -> None:
        """A ValueError that says what is wrong with the images, before long work; ``restores``: feedback must reach the image."""
        if images.dim() != 4 or not len(images) or not images.is_floating_point():
            raise ValueError(
                f"images have shape {tuple(images.shape)} and type {images.dtype}, expected (n, C, H, W), floating point, n >= 1"
            )
        if not (images.min() >= 0 and images.max() <= 1):  # NaN too
            raise ValueError(f"images lie in [{images.min():.4g}, {images.max():.4g}], expected [0, 1]")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels have shape {tuple(labels.shape)}, expected ({len(images)},)")
        if restores and self.model.target != INPUT:
            raise ValueError(
                f"the feedback of this network reconstructs layer {self.model.target!r}, not the image, so that it restores none; "
                f"Figures 9a and 9d need a network with target {INPUT!r}"
            )
        self._check_taken(images)

    def _check_taken(self, images: Tensor) -> None:
        channels = len(self.network.preprocessing.mean)
        if images.shape[1] != channels:  # else a grey image would silently get three channels
            raise ValueError(
                f"the network does not take images of shape {tuple(images.shape[1:])} (its preprocessing is for {channels} "
                f"channel{'s' * (channels > 1)}); give them with the channels that it was trained with"
            )
        with torch.no_grad(), running(self.network.name, images[:1].shape, ValueError):
            self.model(self.enter(images[:1]), iterations=1)

    def threats(self) -> tuple[Threat, Threat]:
        """What Figure 9b attacks: the first pass alone (the paper's transfer attack), and the unrolled network."""
        return threats.first_pass(self.network), threats.end_to_end(self.network)

    def attacked(self, threat: Threat, images: Tensor, labels: Tensor, epsilon: float, seed: int) -> Tensor:
        """The PGD-40 examples (n, C, H, W) of the images; ``epsilon`` in units of [0, 1]."""
        device = self.network.device
        return PGD(steps=40, seed=seed)(threat, images.to(device), labels.to(device), [epsilon]).clipped[0].cpu()

    @torch.no_grad()
    def see(self, images: Tensor, *, whole: bool = False) -> Seen:
        """Decisions of all iterations; with ``whole`` the inputs and reconstructions too (needs target "input")."""
        shown = [f"{INPUT}@{t}" for t in range(self.model.iterations + 1)] if whole else []
        seen = []
        for part in torch.split(images, self.batch_size):
            result = self.model.unroll(self.enter(part), return_layers=shown, return_reconstruction=whole)
            tensors = [result.logits.argmax(-1).cpu()]
            if result.reconstruction is not None:
                inputs = torch.stack(list(result.layers.values()))
                tensors += [self.leave(inputs).cpu(), self.leave(result.reconstruction).cpu()]
            seen.append(tensors)
        return Seen(*(torch.cat(parts, 1) for parts in zip(*seen, strict=True)))


@dataclass(frozen=True)
class Sample:
    """The images that a part of the figure is made of, and the network that sees them.

    Of ``pool`` (m, C, H, W) in [0, 1] with ``pool_labels`` (m,), ``n`` are measured (None: all). ``seed``: of images, examples and
    noise. ``tell`` is told of the progress. ``digest``: SHA-256 that names the pool; empty: it is computed.
    """

    view: View
    pool: Tensor
    pool_labels: Tensor
    n: int | None = None
    seed: int = 0
    tell: Callable[[str], None] = lambda words: None
    digest: str = ""

    def __post_init__(self) -> None:
        self.view.check(self.pool, self.pool_labels)
        if self.n is not None and not 1 <= self.n <= len(self.pool):
            raise ValueError(f"{self.n} images are asked for and there are {len(self.pool)}; give fewer, or none for all")

    @cached_property
    def rows(self) -> Array:
        """(n,) row numbers in the pool of the images that are measured."""
        return drawn(np.arange(len(self.pool)), self.n or len(self.pool), self.seed)

    @cached_property
    def images(self) -> Tensor:
        """(n, C, H, W)."""
        return self.pool[self.rows]

    @cached_property
    def labels(self) -> Tensor:
        """(n,)."""
        return self.pool_labels[self.rows]

    def question(self, part: str) -> dict[str, Any]:
        """All that decides the results of a part ("9a", ...): to this its folder belongs."""
        return {
            "figure": part,
            "network": self.view.network.digest,
            "feedback": self.view.model.settings.as_dict(),
            "data": self.digest or short_hash([array_hash(self.pool.numpy()), array_hash(self.pool_labels.numpy())], 64),
            "images": len(self.rows),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Part:
    """A part of Figure 9, measured.

    ``about``: question, answer and claims, and how the page shows the tables. ``tables``: CSV file -> rows. ``data``: NetCDF file
    -> dataset. ``draw``: ``data``, names of the classes -> the figure. ``parts``: a folder of finished pieces, until all is saved.
    """

    about: Figure
    tables: Mapping[str, Sequence[Row]]
    data: Data
    draw: Callable[[Data, Sequence[str]], Drawing]
    parts: Path | None = None

    def plot(self, names: Sequence[str] = ()) -> Drawing:
        """The figure, from ``data`` alone; ``names`` of the classes."""
        with style.styled():
            return self.draw(self.data, names)

    def save(self, folder: Path, record: Mapping[str, Any], names: Sequence[str] = ()) -> list[NotDrawnError]:
        """All files but the page into ``folder``: tables, claims.md, run.json (``record``), summary.json and, last, the figure.
        Returns what could not be drawn, in words."""
        for file, rows in self.tables.items():
            write_csv(folder / file, rows)
        for file, dataset in self.data.items():
            write_netcdf(folder / file, dataset)
        head = ("claim of the paper", "what we measured", "holds or not")
        table = markdown_table(head, [claim.cells for claim in self.about.claims])
        words = markdown(f"{self.about.question} {self.about.answer}")
        write_text(folder / "claims.md", f"# {markdown(self.about.title)}\n\n{words}\n\n{table}\n")
        write_json(folder / results.RECORD, dict(record))
        self.about.save(folder)
        missing = attempt("figure.png and figure.svg", lambda: style.save(self.plot(names), folder))
        if self.parts is not None and not missing:
            shutil.rmtree(self.parts, ignore_errors=True)
        return missing


def mean_interval(values: Array, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95% percentile bootstrap interval over (n,) images; NaN ends for fewer than two."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (float(values[0]) if len(values) else np.nan), np.nan, np.nan
    rng, n, at_once = np.random.default_rng(seed), len(values), max(1, 2_000_000 // len(values))
    portions = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    means = np.concatenate([values[rng.integers(0, n, (portion, n))].mean(1) for portion in portions])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def cells(name: str, values: Array) -> dict[str, float]:
    """The cells ``name``, ``name_low`` and ``name_high`` of a table: mean and interval."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values.astype(float)), strict=True))


def percent(mean: float, low: float, high: float) -> str:
    """``12.3 % [11.0, 13.5]``, or ``12.3 % (no interval)`` where there are too few values for one."""
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]" if math.isfinite(low) and math.isfinite(high) else "(no interval)"
    return f"{100 * mean:.1f} % {interval}"


def share(row: Row, name: str) -> str:
    """The ``cells`` of ``name``, in percent."""
    return percent(row[name], row[f"{name}_low"], row[f"{name}_high"])


def joined(data: Sequence[xr.Dataset], dim: Any) -> xr.Dataset:
    """Datasets one after another along ``dim``, a new dimension or theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # xarray 2022 calls pandas in an old way
        return xr.concat(list(data), dim)


def drawn(qualify: Array, n: int, seed: int) -> Array:
    """The rule by which examples are shown: up to ``n`` of the row numbers that qualify, drawn at random with a seed."""
    return np.sort(np.random.default_rng(seed).choice(qualify, min(n, len(qualify)), replace=False))


@cache
def texts() -> dict[str, Any]:
    """figure9.toml."""
    return tomllib.loads(resources.files("cnnf_brain.visualize").joinpath("figure9.toml").read_text(encoding="utf-8"))


def claim(part: str, name: str, row: Row, low: float, high: float) -> Claim:
    """A claim of figure9.toml, filled in from ``row``; ``low`` and ``high``: of what is above 0 where the claim holds."""
    words, measured = texts()[part]["claims"][name]
    return Claim.of_interval(words.format(**row), measured.format(**row), low, high)


def worded(part: str, claims: Sequence[Claim], n: int, **values: Any) -> Figure:
    """The texts of a part in figure9.toml, filled in; ``n`` images were measured."""
    text, shared = texts()[part], texts()["shared"]
    values |= {"n": n, "shown": SHOWN, "least": LEAST, **shared}

    def filled(words: str) -> str:
        return words.format(**values)

    limits = [shared["few_images"]] * (n < LEAST) + [shared["one_network"], *text["caveats"]]
    charts = []
    for chart in text["charts"]:
        columns = {"label": "iteration {iteration}", "low": f"{chart['y']}_low", "high": f"{chart['y']}_high"}
        charts.append(TableChart(**columns | chart | {"caption": filled(chart["caption"])}))
    return Figure(
        title=text["title"],
        question=text["question"],
        answer=filled(text["answer"]),
        claims=claims,
        charts=charts,
        tables={table["file"]: (table["title"], *map(filled, table["notes"])) for table in text["tables"]},
        pictures={"figure.svg": filled(text["picture"])},
        caveats=[filled(words) for words in limits],
    )


def show(axis: Any, image: Array, title: str) -> None:
    """An image (C, H, W) without axes."""
    axis.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0).clip(0, 1), vmin=0, vmax=1)
    axis.set_title(title, fontsize=7)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)


def class_name(number: Any, names: Sequence[str]) -> str:
    """The name of a class, or its number where it has none."""
    number = int(number)
    return names[number] if number < len(names) else str(number)
