"""What is measured for Figure 9, against hand-computed values, brute force, scikit-learn and autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr
from scipy.ndimage import convolve1d
from sklearn.decomposition import PCA
from torch import nn
from visualize import small

from cnnf_brain.checks import ModelError
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.types import LayerAt
from cnnf_brain.visualize import attention, plane, restoration
from cnnf_brain.visualize.restoration import Condition
from cnnf_brain.visualize.view import View, drawn, mean_interval

# View


def test_what_the_network_saw_is_what_it_computes() -> None:
    view, x = small.view(), small.images()
    seen = view.see(x, whole=True)
    result = view.model.unroll(2 * x - 1, return_layers=["input@0", "input@1", "input@2"], return_reconstruction=True)
    assert torch.equal(seen.classes, result.logits.argmax(-1))
    for t in range(3):
        assert torch.allclose(2 * seen.inputs[t] - 1, result.layers[LayerAt("input", t)], atol=1e-5)
    made = seen.reconstructions
    # h_{t+1} = h_t + step (reconstruction - h_t), in any affine units
    for t in range(2):
        assert torch.allclose(seen.inputs[t + 1], seen.inputs[t] + 0.3 * (made[t + 1] - seen.inputs[t]), atol=1e-5)
    assert torch.equal(view.see(x).classes, seen.classes)


def test_units_of_several_channels() -> None:
    model = CNNF(small.layers(channels=3), iterations=1).eval()
    view = View(small.network(model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)))
    x = torch.rand(2, 3, 4, 4)
    entered = view.enter(x)
    assert entered[1, 1, 2, 3] == pytest.approx((x[1, 1, 2, 3].item() - 0.2) / 0.25, abs=1e-6)
    assert torch.allclose(view.leave(entered), x, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            CNNF(small.layers(), iterations=0).eval(),
            r"no feedback to see: it runs 0 iterations; give a CNNF with iterations >= 1$",
        ),
        (small.layers().eval(), r"no feedback to see: it is a Sequential"),
        (CNNF(small.layers(), iterations=1).train(), r"training mode; call .eval\(\)"),
    ],
)
def test_networks_that_have_no_feedback_to_see(model: Any, words: str) -> None:
    training = model.training
    network = small.network(model)
    network.module.train(training)  # a Network puts its module into evaluation mode
    with pytest.raises(ValueError, match=words):
        View(network)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.rand(3, 1, 20, 20), None, r"cannot be run on images of shape \(1, 20, 20\).*another image size"),
        (torch.rand(3, 3, 12, 12), None, r"does not take images of shape \(3, 12, 12\)"),
        (torch.rand(3, 12, 12), None, r"shape \(3, 12, 12\) .* expected \(n, C, H, W\)"),
        (torch.rand(0, 1, 12, 12), None, r"n >= 1"),
        (2 * torch.rand(3, 1, 12, 12) - 1, None, r"images lie in \[-.*expected \[0, 1\]"),
        (torch.full((3, 1, 12, 12), torch.nan), None, r"images lie in \[nan"),
        (torch.zeros(3, 1, 12, 12, dtype=torch.uint8), None, r"type torch.uint8"),
        (torch.rand(3, 1, 12, 12), torch.zeros(4), r"labels have shape \(4,\), expected \(3,\)"),
    ],
)
def test_images_that_do_not_fit(x: Any, y: torch.Tensor | None, words: str) -> None:
    with pytest.raises((ValueError, ModelError), match=words):
        small.view().check(x, y)


def test_grey_images_are_not_silently_made_three_channels() -> None:
    model = CNNF(small.layers(channels=3), iterations=1).eval()
    view = View(small.network(model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)))
    view.check(torch.rand(2, 3, 12, 12))
    with pytest.raises(
        ValueError, match=r"does not take images of shape \(1, 12, 12\) \(its preprocessing is for 3 channels\)"
    ):
        view.check(torch.rand(2, 1, 12, 12))


def test_a_network_that_does_not_reconstruct_the_image() -> None:
    view = small.view(target="relu1")
    view.check(small.images())
    with pytest.raises(ValueError, match=r"reconstructs layer 'relu1', not the image.*9a and 9d need"):
        view.check(small.images(), restores=True)
    with pytest.raises(ValueError, match="reconstructs layer"):
        restoration.restore(view, small.images(), small.images(), small.labels())


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.3 <= high for _, low, high in (mean_interval(rng.random(80) < 0.3, resamples=300) for _ in range(150))
    ]
    assert 0.88 <= np.mean(covered) <= 1
    assert mean_interval(np.array([1.0, np.nan, 3.0]))[0] == 2
    assert np.isnan(mean_interval(np.array([np.nan]))).all()


def test_examples_are_drawn_among_all_that_qualify() -> None:
    qualify = np.arange(10, 30)
    assert np.array_equal(drawn(qualify, 4, 0), drawn(qualify, 4, 0))
    every = [drawn(qualify, 4, seed) for seed in range(200)]
    assert set(np.concatenate(every)) == set(qualify)
    assert all(len(set(one)) == 4 for one in every)
    assert np.array_equal(drawn(qualify[:2], 4, 0), qualify[:2])


# 9a


def test_the_plane_is_that_of_scikit_learns_components() -> None:
    x = small.images(30).double()
    made = plane.plane_through(x[0], x[1:])
    expected = PCA(2).fit(x[1:].flatten(1).numpy()).components_
    found = made.axes.flatten(1).numpy()
    assert np.abs((found * expected).sum(1)) == pytest.approx([1, 1], abs=1e-9)
    assert found @ found.T == pytest.approx(np.eye(2), abs=1e-9)
    assert made.half_width == pytest.approx(np.median(np.linalg.norm((x[1:] - x[0]).flatten(1).numpy(), axis=1)))


def test_the_grid_lies_on_the_plane_with_the_image_in_its_middle() -> None:
    x = small.images(30)
    made = plane.plane_through(x[3], x[4:])
    places = made.places(5)
    grid = made.images(places)
    assert torch.allclose(grid[12], x[3], atol=1e-6)
    assert places[1, 0] > places[0, 0]
    assert places[1, 1] == places[0, 1]
    away = (grid - x[3]).flatten(1)
    assert torch.allclose(away @ made.axes.flatten(1).T, places, atol=1e-4)
    assert torch.allclose(away.norm(dim=1), places.norm(dim=1), atol=1e-4)


def test_neighbours_by_brute_force() -> None:
    x = small.images(20)
    distances = [(float((x[i] - x[7]).norm()), i) for i in range(20) if i != 7]
    expected = [i for _, i in sorted(distances)[:6]]
    assert torch.equal(plane.neighbours(x, 7, 6), x[expected])
    assert len(plane.neighbours(x, 7, 100)) == 19


def test_images_that_span_no_plane() -> None:
    x = small.images(1)
    with pytest.raises(ValueError, match="too few for two principal components"):
        plane.plane_through(x[0], small.images(2))
    with pytest.raises(ValueError, match="on one line"):
        plane.plane_through(x[0], x * torch.tensor([0.1, 0.5, 0.9, 0.3])[:, None, None, None])


def test_arrows_are_the_change_of_the_input_taken_apart() -> None:
    view, x = small.view(), small.images(20)
    made = plane.plane_through(x[0], plane.neighbours(x, 0, 10))
    found = plane.look(view, made, 5, x[9])
    grid = made.images(made.places(5))
    result = view.model.unroll(2 * grid - 1, return_layers=["input@1", "input@2"])
    assert np.array_equal(found["decision"].values, result.logits.argmax(-1).numpy())
    for t in (1, 2):
        seen = (result.layers[LayerAt("input", t)].detach() + 1) / 2
        change = (seen - grid).flatten(1)
        along = change @ made.axes.flatten(1).T
        assert found["du"].values[t] == pytest.approx(along[:, 0].numpy(), abs=1e-4)
        assert found["dv"].values[t] == pytest.approx(along[:, 1].numpy(), abs=1e-4)
        # Pythagoras
        whole = np.hypot(np.hypot(found["du"].values[t], found["dv"].values[t]), found["off"].values[t])
        assert whole == pytest.approx(change.norm(dim=1).numpy(), abs=1e-4)
        assert found["to_centre"].values[t] == pytest.approx((seen - x[0]).flatten(1).norm(dim=1).numpy(), abs=1e-4)
        assert found["to_other"].values[t] == pytest.approx((seen - x[9]).flatten(1).norm(dim=1).numpy(), abs=1e-4)
    assert found["off"].values[0] == pytest.approx(np.zeros(25), abs=1e-5)


def test_shares_by_hand() -> None:
    grid = xr.Dataset(
        {
            # the centre is of class 1; of 5 points 2 are inside at first
            "decision": (("iteration", "point"), [[1, 1, 0, 2, 2], [1, 0, 1, 2, 1]]),
            "centre": (("iteration",), [1, 3]),
            "to_centre": (("iteration", "point"), [[1.0, 1, 1, 1, 1], [0.5, 2, 0.5, 1, 0.9]]),
            "to_other": (("iteration", "point"), [[1.0, 1, 1, 1, 1], [2, 2, 2, 2, 0.9]]),
        }
    )
    (row,) = plane.shares(grid)
    expected = {"iteration": 1, "enters": 0.4, "leaves": 0.2, "enters_of_others": 2 / 3, "leaves_of_own": 0.5}
    assert row == pytest.approx(expected | {"closer": 0.6, "closer_to_another": 0.2})
    inside = grid.assign(decision=(("iteration", "point"), np.ones((2, 5), int)))
    (row,) = plane.shares(inside)
    assert row["enters"] == row["leaves"] == row["leaves_of_own"] == 0
    assert np.isnan(row["enters_of_others"])


def test_means_over_planes() -> None:
    table = [
        {
            "iteration": 1,
            "enters": a,
            "leaves": b,
            "enters_of_others": np.nan,
            "leaves_of_own": b,
            "closer": 1.0,
            "closer_to_another": c,
        }
        for a, b, c in ((0.1, 0.3, 0.5), (0.3, 0.1, 0.5), (0.2, 0.5, 0.2))
    ]
    found = {row["measure"]: row for row in plane.summarise(table)}
    assert found["enters"]["mean"] == pytest.approx(0.2)
    assert found["enters_minus_leaves"]["mean"] == pytest.approx(-0.1)
    assert found["closer_minus_control"]["mean"] == pytest.approx(0.6)
    assert found["enters"]["low"] <= 0.2 <= found["enters"]["high"]
    assert found["enters_of_others"]["images"] == 0


# 9b and 9c

SETTINGS = ({}, {"match_norm": False, "step": 1.0}, {"target": "relu1"}, {"ada_relu": "printed"}, {"match_layers": True})  # type: ignore[var-annotated]


@pytest.mark.parametrize("settings", SETTINGS)
def test_passes_are_the_iterations_of_the_network(settings: Any) -> None:
    view, x = small.view(**settings), small.images(4)
    result = view.model.unroll(view.enter(x))
    for t, (network, h) in enumerate(attention.passes(view, x)):
        assert torch.allclose(network(h), result.logits[t], atol=1e-5), t


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layer", ["pool1", "relu2", "relu1", "conv2"])
def test_grad_cam_against_autograd_through_the_whole_network(settings: Any, layer: str) -> None:
    view, x = small.view(**settings), small.images(4)
    if settings.get("target") == layer:  # it runs once, and no iteration looks at it
        with pytest.raises(ValueError, match="layer 'relu1' is not known in the layers above the target"):
            attention.grad_cam(view, x, layer)
        return
    cams, decided = attention.grad_cam(view, x, layer)
    for t in range(3):
        result = view.model.unroll(view.enter(x), iterations=t, return_layers=[f"{layer}@{t}"])
        at = result.layers[LayerAt(layer, t)]
        choice = result.logits[t].argmax(-1)
        (gradient,) = torch.autograd.grad(result.logits[t].gather(1, choice[:, None]).sum(), at)
        expected = (gradient.mean((2, 3), keepdim=True) * at).sum(1).clamp_min(0)
        assert torch.equal(decided[t], choice)
        assert torch.allclose(cams[t], expected, atol=1e-5)


def test_batches_change_nothing() -> None:
    view, x = small.view(), small.images(7)
    cams, _ = attention.grad_cam(view, x, "relu2")
    one, _ = attention.grad_cam(View(view.network, batch_size=100), x, "relu2")
    assert torch.allclose(cams, one, atol=1e-6)


def test_layers_for_grad_cam() -> None:
    view, x = small.view(), small.images(2)
    assert attention.last_map(view, x) == "relu2"
    with pytest.raises(ValueError, match=r"layer 'relu3' is not known .*did you mean 'relu2'"):
        attention.grad_cam(view, x, "relu3")
    with pytest.raises(ValueError, match="has no maps"):
        attention.grad_cam(view, x, "fc")
    with pytest.raises(ValueError, match="set tolerance to None"):
        attention.grad_cam(small.view(tolerance=0.1), x, "relu2")
    nested = CNNF(nn.Sequential(nn.Sequential(*small.layers()), nn.Linear(4, 4)), iterations=1).eval()
    assert attention.last_map(View(small.network(nested)), x) == "0.4"
    assert attention.grad_cam(View(small.network(nested)), x, "0.4")[0].shape == (2, 2, 4, 4)
    flat = CNNF(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), iterations=1).eval()
    with pytest.raises(ValueError, match="no layer above the target has maps"):
        attention.last_map(View(small.network(flat)), x)


def test_area_by_hand() -> None:
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, 0] = 3.0  # even
    maps[0, 1, 0, 1] = 5.0  # one place of four
    maps[0, 2] = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert attention.area(maps)[0] == pytest.approx([1.0, 0.25, 0.5, np.nan], nan_ok=True)


def test_groups_by_hand() -> None:
    classes = np.array([[0, 1, 2, 3, 0], [9, 9, 9, 9, 9], [1, 1, 0, 3, 0]])
    found = attention.groups(classes, np.array([1, 1, 2, 3, 2]))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "corrected": [0],
        "spoiled": [2],
        "right throughout": [1, 3],
        "wrong throughout": [4],
    }


def test_area_over_images_by_hand() -> None:
    areas = np.array([[0.5, 0.7, np.nan, 0.1], [0.4, 0.4, 0.2, 0.1]])
    first, second = attention.summarise(areas, np.array([0, 1, 2]))
    assert (first["area"], first["empty"], first["images"], first["change"]) == (pytest.approx(0.6), 1, 3, 0)
    assert second["area"] == pytest.approx(1 / 3)
    assert second["change"] == pytest.approx(-0.2), "over the two images whose maps are empty at neither"


# 9d


def test_corruptions() -> None:
    x = small.images(40, side=20) * 0.4 + 0.3
    assert torch.equal(restoration.corrupt(x, Condition("clean")), x)
    noisy = restoration.corrupt(x, Condition("noise", 0.05))
    assert (noisy - x).std().item() == pytest.approx(0.05, rel=0.03)
    assert torch.equal(noisy, restoration.corrupt(x, Condition("noise", 0.05)))
    assert not torch.equal(noisy, restoration.corrupt(x, Condition("noise", 0.05), seed=1))
    loud = restoration.corrupt(x, Condition("noise", 3.0))
    assert loud.min() == 0
    assert loud.max() == 1
    salted = restoration.corrupt(torch.cat([x, x], 1), Condition("salt and pepper", 0.2))
    hit = salted != torch.cat([x, x], 1)
    assert torch.equal(hit[:, 0], hit[:, 1]), "all channels of a pixel"
    assert hit.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert set(salted[hit].tolist()) == {0.0, 1.0}
    assert salted[hit].mean().item() == pytest.approx(0.5, abs=0.03)


def test_blur_is_a_gaussian_on_the_two_axes_of_the_image() -> None:
    x = torch.zeros(2, 1, 21, 21)
    x[0, 0, 10, 10] = 1
    blurred = restoration.corrupt(x, Condition("blur", 1.5))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    kernel /= kernel.sum()
    assert blurred[0, 0].numpy()[4:17, 4:17] == pytest.approx(np.outer(kernel, kernel), abs=1e-6)
    assert blurred[1].max() == 0, "not over to the next image"


def test_corruptions_that_are_not_known() -> None:
    with pytest.raises(ValueError, match=r"corruption 'blurr' is not known; did you mean 'blur'"):
        restoration.corrupt(small.images(), Condition("blurr", 1))
    with pytest.raises(ValueError, match="strength -1 must be a number >= 0"):
        restoration.corrupt(small.images(), Condition("noise", -1))


def test_distances_against_their_formulas() -> None:
    x, y = small.images(3, side=16), small.images(3, seed=5, side=16)
    a, b = x.numpy().astype(float), y.numpy().astype(float)
    assert restoration.mse(x, y) == pytest.approx([((a[i] - b[i]) ** 2).mean() for i in range(3)])

    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    kernel /= kernel.sum()

    def smooth(z: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return convolve1d(convolve1d(z, kernel, axis=0, mode="reflect"), kernel, axis=1, mode="reflect")

    def ssim(p: npt.NDArray[Any], q: npt.NDArray[Any]) -> float:  # Wang et al. (2004), eq. 13, range 1
        c1, c2 = 0.01**2, 0.03**2
        mp, mq = smooth(p), smooth(q)
        vp, vq, vpq = smooth(p * p) - mp**2, smooth(q * q) - mq**2, smooth(p * q) - mp * mq
        values = (2 * mp * mq + c1) * (2 * vpq + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
        return values[5:-5, 5:-5].mean()  # where the window is whole

    assert restoration.ssim(x, y) == pytest.approx([ssim(a[i, 0], b[i, 0]) for i in range(3)], abs=1e-9)
    assert restoration.ssim(x, x) == pytest.approx([1, 1, 1])


def test_restoring_measures_what_the_network_made() -> None:
    view, x, y = small.view(), small.images(8), small.labels(8)
    noisy = restoration.corrupt(x, Condition("noise", 0.2))
    found = restoration.restore(view, x, noisy, y)
    result = view.model.unroll(2 * noisy - 1, return_layers=["input@2"], return_reconstruction=True)
    after = (result.layers[LayerAt("input", 2)].detach() + 1) / 2
    assert found["mse"].sel(what="input").values[2] == pytest.approx(((after - x) ** 2).mean((1, 2, 3)).numpy(), abs=1e-5)
    made = (result.reconstruction[2].detach() + 1) / 2
    assert found["mse"].sel(what="reconstruction").values[2] == pytest.approx(
        ((made - x) ** 2).mean((1, 2, 3)).numpy(), abs=1e-5
    )
    for what in restoration.WHAT:
        assert found["mse"].sel(what=what).values[0] == pytest.approx(restoration.mse(x, noisy))
        assert found["ssim"].sel(what=what).values[0] == pytest.approx(restoration.ssim(x, noisy))
    assert np.array_equal(found["correct"].values, (result.logits.argmax(-1) == y).numpy())


def test_shares_that_come_closer_by_hand() -> None:
    mse = np.array([[0.4, 0.2, 0.2, 0.2], [0.1, 0.3, 0.1, 0.2]])
    ssim = np.array([[0.5, 0.5, 0.5, 0.5], [0.9, 0.4, 0.3, 0.5]])
    data = {name: (("what", "iteration", "image"), np.stack([v, v])) for name, v in (("mse", mse), ("ssim", ssim))}
    correct = (("iteration", "image"), [[True, True, False, False], [True, True, True, False]])
    found = xr.Dataset({**data, "correct": correct}, coords={"what": list(restoration.WHAT)})
    row, _ = restoration.summarise(found, Condition("noise", 0.2))
    assert row["mse_closer"] == 0.5, "two of four; an equal distance is not closer"
    assert row["ssim_closer"] == 0.25
    assert row["mse_change"] == pytest.approx((-0.3 + 0.1 - 0.1) / 4)
    assert (row["accuracy_before"], row["accuracy"]) == (0.5, 0.75)
    assert row["mse_change_low"] <= row["mse_change"] <= row["mse_change_high"]
