"""Simulated recordings: the same everywhere, with the ceiling that they claim.

``simulated-readout`` reads the shipped networks. Where these are trained anew, ``python tests/recordings/test_simulated.py`` writes
what its sites read anew.
"""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest
import torch

import cnnf_brain as cb
from cnnf_brain.activations import features
from cnnf_brain.images import batches
from cnnf_brain.recordings import simulated, simulated_recordings
from cnnf_brain.types import Array, LayerAt

SHIPPED = str(resources.files("cnnf_brain") / "pretrained" / "readout.npy")


def read_out() -> Array:
    """(region, image, site) what the sites of ``simulated-readout`` read, from the shipped networks."""
    networks = {"small CNN": cb.load_network("small", iterations=0), "small CNN-F": cb.load_network("small")}
    images, drives = simulated_recordings("V4").images, []
    for number, (network, layer) in enumerate((networks[name], LayerAt.parse(at)) for name, at in simulated.READ.values()):
        with torch.inference_mode():
            parts = [features(network, batch, [layer])[layer] for batch in batches(images, network.preprocessing, 64)]
        drives.append(simulated.drive_of(np.concatenate(parts), 64, number))
    return np.stack(drives).astype(np.float16)


def test_the_readout_is_that_of_the_shipped_networks() -> None:
    np.testing.assert_allclose(read_out().astype(float), np.load(SHIPPED).astype(float), atol=0.01)


@pytest.mark.parametrize("region", ["V4", "IT"])
def test_sites_that_read_a_network_are_recordings_like_the_others(region: str) -> None:
    made, other = cb.load_recordings("simulated-readout", region=region), simulated_recordings(region)
    assert isinstance(made, cb.Recordings)
    assert (made.simulated, made.source, made.region, made.excluded) == (True, "simulated-readout", region, ())
    assert made.repeats is not None
    assert made.repeats.shape == (320, 64, 10)
    assert made.images.digest() == other.images.digest()
    assert np.array_equal(np.array(made.object_names), np.array(other.object_names))
    rates, spread = (
        made.repeats.mean(axis=2),
        made.repeats.var(axis=2, ddof=1),
    )  # spikes of a Poisson process: variance = mean
    assert spread.mean() == pytest.approx(rates.mean(), rel=0.02)
    found = 1 - spread.mean(axis=0) / 10 / rates.var(axis=0, ddof=1)
    assert np.abs(found - made.true_ceilings).mean() < 0.04
    with pytest.raises(ValueError, match=r"region 'V1' is not known in simulated-readout.*Known: V4, IT"):
        cb.load_recordings("simulated-readout", region="V1")


def test_what_a_site_reads_is_a_rectified_mixture_of_the_first_components() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 7)) * [9, 5, 1, 1, 1, 1, 1]
    drive = simulated.drive_of(rows, 5, 0, dimensions=2)
    linear = np.log(np.expm1(drive))  # undoes the rectification
    left = np.linalg.svd(rows - rows.mean(axis=0))[0][:, :2]
    np.testing.assert_allclose(left @ (left.T @ linear), linear, atol=1e-9)
    np.testing.assert_allclose(linear.std(axis=0), 1.5)


@pytest.mark.parametrize(("region", "n_sites"), [("V4", 88), ("IT", 168)])
def test_shape_and_labels(region: str, n_sites: int) -> None:
    made = simulated_recordings(region)
    assert made.simulated
    assert made.source == "simulated"
    assert made.region == region
    assert made.excluded == ()
    assert made.repeats is not None
    assert made.repeats.shape == (320, n_sites, 10)
    assert np.array_equal(made.repeats, np.floor(made.repeats))
    assert made.repeats.min() >= 0
    assert all("simulated" in name for name in made.site_ids)
    assert made.object_names is not None
    _, counts = np.unique(made.object_names, return_counts=True)
    assert counts.tolist() == [40] * 8


def test_images_are_pngs_that_both_regions_share() -> None:
    v4, it = simulated_recordings("V4"), simulated_recordings("IT")
    assert v4.images.ids == it.images.ids
    pixels = np.stack([np.asarray(v4.images.decode(i)) for i in range(320)])
    assert pixels.shape == (320, 64, 64, 3)
    assert v4.images.digest() == it.images.digest()
    assert all(v4.images.read(i).startswith(b"\x89PNG") for i in range(320))
    assert len(np.unique(pixels.reshape(320, -1), axis=0)) == 320


@pytest.mark.parametrize("region", ["V4", "IT"])
def test_background_falls_as_one_over_f(region: str) -> None:
    """The corner of the image, where no object reaches often, has more power at low than at high frequencies."""
    images = simulated_recordings(region).images
    corners = np.stack([np.asarray(images.decode(i), float)[:16, :16, 1] for i in range(0, 320, 4)])
    power = (np.abs(np.fft.rfft2(corners - corners.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    assert power[0, 1] > 4 * power[0, 4] > 4 * power[0, 8]


@pytest.mark.parametrize("region", ["V4", "IT"])
def test_split_halves_find_the_true_ceiling(region: str) -> None:
    made = simulated_recordings(region)
    assert made.repeats is not None
    true = made.true_ceilings
    assert true.min() >= 0.6
    assert true.max() <= 0.92
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(20):
        order = rng.permutation(10)
        halves = [made.repeats[:, :, order[half]].mean(axis=2) for half in (slice(0, 5), slice(5, 10))]
        r = np.array([np.corrcoef(one, two)[0, 1] for one, two in zip(halves[0].T, halves[1].T, strict=True)])
        estimates.append(2 * r / (1 + r))
    difference = np.mean(estimates, axis=0) - true
    # a correlation of 0.6 over 320 images has a standard error of 0.036
    assert abs(difference.mean()) < 0.01
    assert np.sqrt((difference**2).mean()) < 0.036
    assert np.corrcoef(np.mean(estimates, axis=0), true)[0, 1] > 0.9


def test_noise_is_poisson() -> None:
    made = simulated_recordings("V4")
    assert made.repeats is not None
    fano = made.repeats.var(axis=2, ddof=1).sum(axis=0) / made.responses.sum(axis=0)
    # the standard error of one site's Fano factor over 320 images with 9 degrees of freedom is about 0.03
    assert abs(fano.mean() - 1) < 0.01
    assert np.all(np.abs(fano - 1) < 0.15)


def test_it_knows_categories_and_v4_less() -> None:
    """Share of a response's variance between categories, over what repeats of noise alone would give."""

    def between(region: str) -> float:
        made = simulated_recordings(region)
        z = (made.responses - made.responses.mean(axis=0)) / made.responses.std(axis=0)
        means = [z[made.object_names == name].mean(axis=0) for name in np.unique(made.object_names)]  # type: ignore[arg-type]
        return float(np.median(np.mean(np.square(means), axis=0)))

    assert between("IT") > 2 * between("V4")


def test_every_machine_makes_the_same() -> None:
    """Hashes seen with NumPy 1.26 (Python 3.11, with and without AVX) and 2.5 (Python 3.12)."""
    v4, it = simulated_recordings("V4"), simulated_recordings("IT")
    assert v4.images.digest().startswith("542d56cc5dbcefa4")
    for made, known in [(v4, "f8fce7d0439ba32a"), (it, "d370b7cbbdcd76b6")]:
        assert made.repeats is not None
        assert hashlib.sha256(made.repeats.astype("<i4").tobytes()).hexdigest().startswith(known)


def test_unknown_region() -> None:
    with pytest.raises(ValueError, match=r"region 'V1' is not known in simulated.*Known: V4, IT"):
        simulated_recordings("V1")


if __name__ == "__main__":
    np.save(SHIPPED, read_out())
