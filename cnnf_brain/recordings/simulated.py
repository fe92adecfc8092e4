"""Simulated V4 and IT sites: a model of their own (no network), with repeats and a known ceiling.

Images: eight simple shaded objects in random pose on random 1/f backgrounds. V4 sites: Gabor energies at a few
orientations and scales, pooled over a local receptive field, combined by weights and one product. IT sites: pooled
products of such energies over large fields, and a graded preference for object categories that falls off with the
object's distance from the field's centre.

A second source, ``simulated-readout``, has sites whose right answer is known: they read a layer of a shipped network.

Site j fires n_jk ~ Poisson(rate_jk) spikes to each presentation of image k. With R repeats the reliability of its mean
response over these images is

    ceiling_j = S_j / (S_j + N_j),    S_j = Var_k(rate_jk),    N_j = Mean_k(rate_jk) / R,

the value that split halves with the Spearman-Brown correction estimate. The gain of each site is set so that its
ceiling is a number drawn beforehand; it is kept in ``Recordings.true_ceilings``.

Everything follows from one seed. Counts and pixels are integers drawn from rates and intensities, so that the last bit
of a sum, which differs from machine to machine, does not reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib import resources

import numpy as np

from cnnf_brain.checks import unknown
from cnnf_brain.io import read_array
from cnnf_brain.recordings.record import Recordings
from cnnf_brain.types import Array, Images

NAME = "simulated"
N_SITES = {"V4": 88, "IT": 168}
READOUT = "simulated-readout"
# the shipped network and the layer that sites read
READ = {"V4": ("small CNN", "pool2@0"), "IT": ("small CNN-F", "relu3@2")}
N_REPEATS = 10

_SEED = 20201025
_SIZE = 64  # pixels
_N_EACH = 40  # images of each object
_CEILINGS = (0.6, 0.92)  # the range that true ceilings are drawn from
_ORIENTATIONS = 6
_WAVELENGTHS = (4.0, 7.0, 12.0)  # pixels
_CELLS = 8  # energies are pooled on a grid of 8 x 8 cells

Shape = Callable[[Array, Array], Array]

# Signed distance to the outline, negative inside, in units of the object's radius.
_SHAPES: dict[str, Shape] = {
    "ball": lambda u, v: np.hypot(u, v) - 0.9,
    "box": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.75,
    "wedge": lambda u, v: np.maximum(0.87 * np.abs(u) + 0.5 * v, -v) - 0.5,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.68) - 0.27,
    "cross": lambda u, v: np.minimum(
        np.maximum(np.abs(u) - 0.28, np.abs(v) - 0.95), np.maximum(np.abs(v) - 0.28, np.abs(u) - 0.95)
    ),
    "star": lambda u, v: np.hypot(u, v) - 0.68 - 0.27 * np.cos(5 * np.arctan2(v, u)),
    "bar": lambda u, v: np.hypot(u - np.clip(u, -0.75, 0.75), v) - 0.22,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.8 - np.hypot(u - 0.45, v)),
}


def simulated(region: str) -> Recordings:
    """Simulated recordings of ``V4`` (88 sites) or ``IT`` (168 sites): 320 images, 10 repeats, the same every time.

    Both regions have the same images (64 x 64 RGB, PNG). Responses and repeats are spike counts. ``object_names`` are the
    objects, ``true_ceilings`` the reliability of the mean responses.

    Raises ValueError for another region.
    """
    if region not in N_SITES:
        raise unknown("region", region, N_SITES, where=NAME)
    return _recordings(region, NAME, *_counts(region))


def readout(region: str) -> Recordings:
    """Simulated sites that read a network: a comparison whose right answer is known, on the images of ``simulated``.

    64 ``V4`` sites read layer pool2 of the shipped CNN, which has no feedback. 64 ``IT`` sites read layer relu3 of the shipped
    CNN-F after two iterations. So the CNN must be the better model of these V4 sites, and the CNN-F that of these IT sites.

    Raises ValueError for another region.
    """
    if region not in READ:
        raise unknown("region", region, READ, where=READOUT)
    drive = read_array(str(resources.files("cnnf_brain") / "pretrained" / "readout.npy"))[list(READ).index(region)]
    rng = np.random.default_rng([_SEED, 3 + list(READ).index(region)])
    return _recordings(region, READOUT, *_spikes(rng, drive.astype(np.float64)))


def drive_of(features: Array, n: int, seed: int, dimensions: int = 20) -> Array:
    """Drive (n_images, n) of ``n`` sites that read ``features`` (n_images, n_features).

    Each is a random mixture of the first ``dimensions`` principal components, softly rectified.
    """
    left, size, _ = np.linalg.svd(features - features.mean(axis=0, dtype=np.float64), full_matrices=False)
    scores = left[:, :dimensions] * size[:dimensions]
    scores *= np.sign(scores[np.abs(scores).argmax(axis=0), range(scores.shape[1])])  # a component's sign is arbitrary
    mixed = scores @ np.random.default_rng([_SEED, seed]).standard_normal((scores.shape[1], n))
    drive: Array = np.logaddexp(0.0, 1.5 * mixed / mixed.std(axis=0))
    return drive


def _recordings(region: str, source: str, counts: Array, ceilings: Array) -> Recordings:
    """Spike counts (n_images, n_sites, n_repeats) as recordings of the simulated images."""
    pixels, _, objects = _scenes()
    recordings = Recordings.from_arrays(
        counts,
        Images.of(pixels, [f"{NAME}-{index:03d}" for index in range(len(pixels))], where=f"{NAME} images"),
        region=region,
        source=source,
        site_ids=[f"{source}-{region}-{site:03d}" for site in range(len(ceilings))],
        object_names=[list(_SHAPES)[number] for number in objects],
        subjects=[source] * len(ceilings),
    )
    return replace(recordings, simulated=True, true_ceilings=ceilings)


@lru_cache(maxsize=1)
def _scenes() -> tuple[Array, Array, Array]:
    """Images (n, 64, 64, 3) in uint8, objects' centres (n, 2) in pixels, objects' numbers."""
    rng = np.random.default_rng([_SEED, 0])
    objects = rng.permutation(np.repeat(np.arange(len(_SHAPES)), _N_EACH))
    centres = rng.uniform(-13, 13, (len(objects), 2))
    shapes = list(_SHAPES.values())
    pixels = np.stack([_render(rng, shapes[number], centre) for number, centre in zip(objects, centres, strict=True)])
    return pixels, centres, objects


def _render(rng: np.random.Generator, shape: Shape, centre: Array) -> Array:
    """One shaded object, turned and scaled at random, on a random background; uint8 (64, 64, 3)."""
    axis = np.arange(_SIZE) - (_SIZE - 1) / 2
    y, x = np.meshgrid(axis - centre[0], axis - centre[1], indexing="ij")
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(11, 20)
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    distance = shape(u, v)
    height = np.sqrt(np.clip(-distance, 0, 0.3) + 0.02)  # a rounded edge
    slope = np.stack(np.gradient(height * radius))
    light = rng.uniform(0, 2 * np.pi)
    facing = (1.0 - slope[0] * np.sin(light) - slope[1] * np.cos(light)) / np.sqrt(1 + (slope**2).sum(axis=0))
    colour = rng.uniform(0.25, 1.0, 3)
    surface = (0.35 + 0.65 * np.clip(facing, 0, 1.4))[..., None] * colour
    inside = np.clip(0.5 - distance * radius, 0, 1)[..., None]  # an edge of one pixel
    image = inside * surface + (1 - inside) * _background(rng)
    pixels: Array = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return pixels


def _background(rng: np.random.Generator) -> Array:
    """Noise with amplitudes as 1/f, common to the colours for the most part; (64, 64, 3), about 0 to 1."""
    rows, columns = np.meshgrid(np.fft.fftfreq(_SIZE), np.fft.rfftfreq(_SIZE), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / _SIZE)
    amplitude[0, 0] = 0
    spectrum = np.fft.rfft2(rng.uniform(-1, 1, (4, _SIZE, _SIZE))) * amplitude
    noise = np.fft.irfft2(spectrum, s=(_SIZE, _SIZE))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    grey, colours = noise[0, ..., None], np.moveaxis(noise[1:], 0, -1)
    return rng.uniform(0.35, 0.6) + rng.uniform(0.06, 0.16) * (grey + 0.25 * colours)


@lru_cache(maxsize=2)
def _counts(region: str) -> tuple[Array, Array]:
    """Spike counts (n_images, n_sites, n_repeats) and true ceilings (n_sites)."""
    rng = np.random.default_rng([_SEED, list(N_SITES).index(region) + 1])
    drive = (_v4_drive if region == "V4" else _it_drive)(rng, N_SITES[region])
    return _spikes(rng, drive)


def _spikes(rng: np.random.Generator, drive: Array) -> tuple[Array, Array]:
    """Spike counts (n_images, n_sites, n_repeats) of sites with this drive, and the ceilings that are drawn for them."""
    ceilings = rng.uniform(*_CEILINGS, drive.shape[1])
    # S / (S + N) = ceiling for rate = gain * drive
    gain = ceilings / (1 - ceilings) * drive.mean(axis=0) / (N_REPEATS * drive.var(axis=0))
    rates = gain * drive
    counts = rng.poisson(rates[:, :, None], (*rates.shape, N_REPEATS))
    return counts, ceilings


@lru_cache(maxsize=1)
def _energies() -> Array:
    """Gabor energy of the images' luminance, (n_images, n_channels, 8, 8); each channel has mean 1."""
    luminance = _scenes()[0] @ np.array([0.3, 0.6, 0.1]) / 255
    spectra = np.fft.fft2(luminance - luminance.mean(axis=(1, 2), keepdims=True))
    rows, columns = np.meshgrid(np.fft.fftfreq(_SIZE), np.fft.fftfreq(_SIZE), indexing="ij")
    channels = []
    for wavelength in _WAVELENGTHS:
        for turn in range(_ORIENTATIONS):
            angle, frequency = np.pi * turn / _ORIENTATIONS, 1 / wavelength
            from_peak = (rows - frequency * np.sin(angle)) ** 2 + (columns - frequency * np.cos(angle)) ** 2
            one_sided = np.exp(-from_peak / (2 * (0.3 * frequency) ** 2))  # so the filter's output is complex
            energy = np.abs(np.fft.ifft2(spectra * one_sided))
            cells = energy.reshape(len(energy), _CELLS, _SIZE // _CELLS, _CELLS, _SIZE // _CELLS).mean(axis=(2, 4))
            channels.append(cells / cells.mean())
    return np.stack(channels, axis=1)


def _pooled(rng: np.random.Generator, n: int, spread: float, width: float) -> tuple[Array, Array]:
    """Energies in ``n`` Gaussian receptive fields, (n_images, n_channels, n), and the fields' centres in pixels."""
    centres = rng.uniform(-spread, spread, (n, 2))
    axis = np.arange(_CELLS) - (_CELLS - 1) / 2
    along = np.exp(-((axis - centres[..., None]) ** 2) / (2 * width**2))  # (n, 2, cells)
    field = along[:, 0, :, None] * along[:, 1, None, :]
    field /= field.sum(axis=(1, 2), keepdims=True)
    return np.einsum("scij,nij->scn", _energies(), field), centres * (_SIZE / _CELLS)


def _v4_drive(rng: np.random.Generator, n: int) -> Array:
    """(n_images, n): two preferred channels, their product, and one suppressing channel, over the local energy."""
    pooled, _ = _pooled(rng, n, spread=2.0, width=1.0)
    surround = pooled.mean(axis=1)
    drive = np.empty_like(surround)
    for site in range(n):
        a, b, c = (pooled[:, channel, site] for channel in rng.choice(pooled.shape[1], 3, replace=False))
        weight = rng.uniform(0.3, 1.0, 4)
        excited = weight[0] * a + weight[1] * b + weight[2] * a * b
        drive[:, site] = excited / (0.5 + weight[3] * c + 0.5 * surround[:, site])
    rates: Array = drive**1.5
    return rates


def _it_drive(rng: np.random.Generator, n: int) -> Array:
    """(n_images, n): products of pooled energies in a large field, and preferred categories where the object is near."""
    pooled, fields = _pooled(rng, n, spread=1.0, width=2.0)
    _, centres, objects = _scenes()
    drive = np.empty((len(objects), n))
    for site in range(n):
        channels = rng.choice(pooled.shape[1], (3, 2), replace=False)
        features = (pooled[:, channels[:, 0], site] * pooled[:, channels[:, 1], site]) @ rng.uniform(-1, 1, 3)
        features = (features - features.mean()) / features.std()
        preference = rng.gamma(0.5, 1.0, len(_SHAPES))
        preference = (preference - preference.mean()) / preference.std()
        near = np.exp(-((centres - fields[site]) ** 2).sum(axis=1) / (2 * 18.0**2))
        share = rng.uniform(0.3, 0.8)
        drive[:, site] = share * near * preference[objects] + (1 - share) * features
    return np.logaddexp(0.0, 1.5 * drive)  # a soft rectification
