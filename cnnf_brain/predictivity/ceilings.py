"""What trial noise leaves of a site's predictable variance: its reliability, and r² with expected responses, with intervals.

Both intervals are about the noise of repeats: the images are those that were shown (docs/statistics.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from cnnf_brain.types import Array

QUANTILE = float(stats.norm.ppf(0.975))  # of 95% intervals


class Ceiling(NamedTuple):
    """Values of sites with their 95% intervals, each (n_sites,); NaN where the repeats give none."""

    value: Array
    low: Array
    high: Array


class _Moments(NamedTuple):
    """Of each site, over the images that have two repeats or more: sums, and the sampling variances that noise gives them.

    With the mean response m of an image and the noise variance w = s² / k of that mean (k repeats): ``total`` is the variance of m
    over images, ``noise`` the mean of w. Noise is taken to be normal, independent, and of any size in each image.
    """

    n: Array  # images
    deviations: Array  # (n_images, n_sites) of m from their mean; 0 where an image takes no part
    w: Array  # (n_images, n_sites)
    total: Array
    noise: Array
    total_variance: Array
    noise_variance: Array


def reliability(repeats: Array) -> Ceiling:
    """Reliability of each site's mean response: the share of its variance over these images that is not trial noise.

    It is the split-half correlation over all halvings in closed form, Spearman-Brown corrected: covariance and variance of
    the two half means are averaged over all halvings of the repeats of every image, and r = covariance / variance becomes
    2r / (1 + r). That is 1 - noise / total, with the variance ``total`` of the images' means, and the mean noise variance of
    these means.

    The interval is that of log(total / noise) by the delta method, with a normal quantile. Noise may differ between images.
    It is about other repeats of the same images; other images have another reliability.

    Parameters
    ----------
    repeats : (n_images, n_sites, n_repeats) array
        Single presentations, NaN where there were fewer. An image with one repeat takes no part.

    Returns
    -------
    Ceiling
        At most 1, and below 0 where there is more noise than chance would leave. NaN for fewer than 3 images with two repeats.

    Raises
    ------
    ValueError
        Repeats of another shape.
    """
    found = _moments(repeats)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(found.total / found.noise)
        half = QUANTILE * np.sqrt(found.total_variance / found.total**2 + found.noise_variance / found.noise**2)
        value = np.where(found.total > 0, 1 - found.noise / found.total, np.nan)
        return Ceiling(value, 1 - np.exp(half - ratio), 1 - np.exp(-half - ratio))


def explained_r2(predictions: Array, repeats: Array) -> Ceiling:
    """r² between predictions and the expected responses, corrected for trial noise (Pospisil & Bair 2021, r²_ER).

    With c the covariance of mean responses with predictions of variance 1 over n images: (c² - noise / (n - 1)) / (total - noise),
    terms as in ``reliability``. Both corrections are unbiased where noise has one variance; square roots of spike counts have.

    The interval squares the ends of that of c / sqrt(total - noise), by the delta method with a normal quantile; it starts
    at 0 where that interval holds 0. It takes images and predictions as given, and noise as the only chance.

    Parameters
    ----------
    predictions : (n_images, n_sites) array
        Made without these repeats, for instance held-out predictions of all splits.
    repeats : (n_images, n_sites, n_repeats) array
        As in ``reliability``.

    Returns
    -------
    Ceiling
        Values are not clipped: noise can bring them below 0 or above 1. NaN where no variance is left beside the noise, or
        predictions are constant.

    Raises
    ------
    ValueError
        Shapes that do not match.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    if predictions.shape != np.shape(repeats)[:2]:
        raise ValueError(
            f"predictions have shape {predictions.shape}, repeats {np.shape(repeats)}; expected the same images and sites"
        )
    found = _moments(repeats)
    there = found.w >= 0
    z = np.where(there, predictions, 0.0)
    z = np.where(there, z - z.sum(axis=0) / np.maximum(found.n, 1), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z /= np.sqrt(np.sum(z**2, axis=0) / (found.n - 1))
        signal = np.where(found.total > found.noise, found.total - found.noise, np.nan)
        c = np.sum(z * found.deviations, axis=0) / (found.n - 1)
        value = (c**2 - found.noise / (found.n - 1)) / signal
        w = np.where(there, found.w, 0.0)
        variance = np.sum(z**2 * w, axis=0) / (found.n - 1) ** 2  # of c
        covariance = 2 * np.sum(z * found.deviations * w, axis=0) / (found.n - 1) ** 2  # of c and total
        by_c, by_total = 1 / np.sqrt(signal), -c / 2 / signal**1.5  # derivatives of c / sqrt(signal)
        spread = by_c**2 * variance + by_total**2 * (found.total_variance + found.noise_variance)
        half = QUANTILE * np.sqrt(np.maximum(0.0, spread + 2 * by_c * by_total * covariance))
        r = c / np.sqrt(signal)
        ends = np.square([r - half, r + half])
        low = np.where(np.abs(r) < half, 0.0, ends.min(axis=0))
    return Ceiling(value, np.where(np.isnan(r), np.nan, low), ends.max(axis=0))


def _moments(repeats: Array) -> _Moments:
    repeats = np.asarray(repeats, dtype=np.float64)
    if repeats.ndim != 3:
        raise ValueError(f"repeats have shape {repeats.shape}; expected (n_images, n_sites, n_repeats)")
    valid = np.isfinite(repeats)
    k = valid.sum(axis=2)
    there, k = k >= 2, np.maximum(k, 2)  # 2: a number that harms nothing where an image takes no part
    m = np.where(valid, repeats, 0.0).sum(axis=2) / k
    squares = np.where(valid, repeats - m[..., None], 0.0) ** 2
    w = squares.sum(axis=2) / (k - 1) / k
    n = there.sum(axis=0)
    divisor = np.where(n >= 3, n, np.nan)

    def mean(values: Array) -> Array:
        found: Array = np.where(there, values, 0.0).sum(axis=0) / divisor
        return found

    d = np.where(there, m - mean(m), 0.0)
    scale = divisor / (divisor - 1)
    # E[d² w] exceeds the product of their means by that of w², and E[w²] = (k + 1) / (k - 1) times it
    total_variance = mean(4 * d**2 * w - 2 * w**2 * (k - 1) / (k + 1)) * scale**2 / divisor
    noise_variance = mean(2 * w**2 / (k + 1)) / divisor
    w = np.where(there, w, np.nan)
    return _Moments(n, d, w, mean(d**2) * scale, mean(w), np.maximum(0.0, total_variance), noise_variance)
