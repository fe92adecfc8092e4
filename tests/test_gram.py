"""Products against X Xᵀ in float64; the cache; what interruptions leave; other processes."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny
import torch
from filelock import FileLock

from cnnf_brain import activations, checks, gram, identity, io
from cnnf_brain import scratch as scratch_
from cnnf_brain.checks import ModelError
from cnnf_brain.gram import DamagedCacheWarning, layer_grams
from cnnf_brain.identity import gram_key
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.kernel import whole
from cnnf_brain.types import Gram, Images, LayerAt

PROBE = [4, 4, 1, 3]  # the passes that every network is tried with first
AT = [LayerAt.parse(name) for name in ("relu1@0", "pool2@1", "pool2@2", "relu2@1:feedback", "fc@2")]


def compute(network: Network, stimuli: Images, layers: list[LayerAt] = AT, **options: Any) -> dict[LayerAt, Gram]:
    return dict(layer_grams(network, stimuli, layers, progress=False, **options))


def centred(product: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """K of the features centred on all images."""
    product = whole(product)
    n = len(product)
    C = np.eye(n) - 1 / n
    return C @ product @ C


def expected(network: Network, stimuli: Images, at: LayerAt) -> npt.NDArray[Any]:
    """X Xᵀ in float64, X of one pass with all images at once."""
    batch = torch.stack([network.preprocessing(stimuli.decode(i)) for i in range(len(stimuli))])
    with torch.inference_mode():
        X = activations.extract(network.module, batch, [at])[at].flatten(1).double().numpy()
    return centred(X @ X.T)


def assert_same(found: npt.NDArray[Any], other: npt.NDArray[Any], tolerance: float = 1e-5) -> None:
    assert np.abs(centred(found) - centred(other)).max() <= tolerance * np.abs(centred(other)).max()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every forward pass so far, in order."""
    seen: list[int] = []
    extract = activations.extract

    def counted(model: Any, batch: Any, layers: Any, *name: Any) -> Any:
        seen.append(len(batch))
        return extract(model, batch, layers, *name)

    monkeypatch.setattr(activations, "extract", counted)
    return seen


@pytest.mark.parametrize("batch_size", [1, 3, 12, 50])
@pytest.mark.parametrize("block_bytes", [2**28, 12 * 4 * 100])
@pytest.mark.parametrize("scratch_bytes", [2**30, 4 * 12 * 1200])
def test_streamed_grams_equal_those_of_all_features(
    cache: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, block_bytes: Any, scratch_bytes: Any
) -> None:
    # One block of columns, or blocks of a hundred with a rest; all layers at once, or one or two at a time.
    monkeypatch.setattr(scratch_, "BLOCK_BYTES", block_bytes)
    network, stimuli = tiny.network(), tiny.images(12)
    found = compute(network, stimuli, batch_size=batch_size, scratch_bytes=scratch_bytes)
    assert list(found) == AT
    for at in AT:
        assert found[at].values.dtype == np.float64
        assert_same(found[at].values, expected(network, stimuli, at))
    assert [found[at].n_features for at in AT] == [6 * 14 * 14, 288, 288, 8 * 12 * 12, 5]
    assert [found[at].values.shape for at in AT] == [(12, 12)] * 4 + [(12, 5)], "few features are kept in place of K"
    assert list((cache / "scratch").iterdir()) == [], "scratch is removed"


def test_a_block_may_be_a_single_column(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_, "BLOCK_BYTES", 1)
    network, stimuli, at = tiny.network(), tiny.images(12), AT[-1]
    assert_same(compute(network, stimuli, [at])[at].values, expected(network, stimuli, at))


def test_groups_are_of_few_iterations(cache: Path) -> None:
    counts = {LayerAt(name, iteration): 10 for name in ("a", "b", "c") for iteration in (0, 1, 2)}
    groups = scratch_.grouped(counts, 100, 4 * 100 * 30)
    assert [{at.iteration for at in group} for group in groups] == [{0}, {1}, {2}]
    assert {at for group in groups for at in group} == set(counts)


def test_groups_fill_the_scratch_space(cache: Path) -> None:
    counts = {LayerAt(name): count for name, count in (("a", 10), ("b", 20), ("c", 5), ("d", 30))}
    names = [[at.layer for at in group] for group in scratch_.grouped(counts, 100, 4 * 100 * 30)]
    assert names == [["a", "b"], ["c"], ["d"]]
    with pytest.raises(OSError, match=r"d@0: its features over 100 images take .* GiB of scratch.*CNNF_BRAIN_CACHE"):
        scratch_.grouped(counts, 100, 4 * 100 * 30 - 1)


def test_too_little_scratch_is_an_error_before_the_images_run(cache: Path, passes: list[int]) -> None:
    with pytest.raises(OSError, match=r"relu1@0: its features over 12 images take"):
        compute(tiny.network(), tiny.images(12), scratch_bytes=4 * 1176 * 12 - 1)
    assert passes == PROBE, "the first images alone"


def test_too_little_memory_is_an_error_before_the_images_run(
    cache: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    free = type("Free", (), {"available": scratch_.gram_bytes(12) - 1})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(
        OSError, match=r"a Gram of 12 images.* takes 0.75 GiB of memory, and 0.75 GiB are free; free memory, or"
    ):
        compute(tiny.network(), tiny.images(12))
    assert passes == PROBE, "the first images alone"
    free.available = scratch_.gram_bytes(12)  # type: ignore[attr-defined]
    compute(tiny.network(), tiny.images(12))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Free", (), {"available": 10**6}))
    compute(tiny.network(), tiny.images(12))  # it is there already
    with pytest.raises(OSError, match=r"takes 1 GiB of memory, and 0.000931 GiB are free"):
        gram.Features([(tiny.network(), tiny.images(12), AT)]).compute(progress=False, memory=2**30)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its group has cached of files can be had back; a group without a limit limits nothing."""
    files = {"memory.max": "3000000\n", "memory.current": "2500000\n", "memory.stat": "anon 1500000\nfile 1000000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(checks, "GROUP", tmp_path)
    checks.check_memory(1_500_000, "this")
    with pytest.raises(OSError, match=r"this takes 0\.0014 GiB"):
        checks.check_memory(1_500_001, "this")
    (tmp_path / "memory.max").write_text("max\n")
    checks.check_memory(1_500_001, "this")


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_the_memory_that_is_asked_for_is_held(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the making of K; its product with itself at once would take half of K more, in float32."""
    monkeypatch.setattr(scratch_, "BLOCK_BYTES", 2**22)
    monkeypatch.setattr(scratch_, "few", lambda *a: False)  # in place of more features, for time
    n, at = 4000, LayerAt("layer")
    rows = np.random.default_rng(0).standard_normal((n, 500), dtype=np.float32)

    def work() -> None:
        with scratch_.Scratch("key", 500, n) as scratch:
            scratch.append(rows)
            gram.write_gram(cache / "k.npz", Gram(at, scratch.gram(), 500))

    assert 8 * n**2 <= tiny.grown(work) <= scratch_.gram_bytes(n) + 2**25
    made = gram.read_gram(at, cache / "k.npz")
    assert made is not None
    some = rows[:50].astype(float) - rows.mean(axis=0, dtype=float)
    assert np.allclose(made.values[:50, :50], some @ some.T, atol=1e-3)


def test_a_full_disk_says_so_and_leaves_no_gram(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "ascontiguousarray", lambda rows: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write features to .*No space left on device; free space or point CNNF_BRAIN"):
        compute(tiny.network(), tiny.images(12))
    assert not (cache / "grams").exists() or list((cache / "grams").iterdir()) == []


def test_features_that_are_not_finite_are_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_is_fine = activations.probe(tiny.network(), tiny.images(12), [LayerAt("relu2", 2)])
    monkeypatch.setattr(activations, "probe", lambda *a: first_is_fine)
    network = tiny.network(iterations=2, match_norm=False)
    with torch.no_grad():
        network.module.conv2.weight *= 1e12
    with pytest.raises(
        ValueError, match=r"relu2@2: features are not finite .*fewer iterations, a smaller step, match_norm or match_layers"
    ):
        compute(network, tiny.images(12), [LayerAt("relu2", 2)])


def test_features_whose_products_leave_float32_are_an_error(cache: Path) -> None:
    network, at = tiny.network(), LayerAt("conv1")
    with torch.no_grad():
        network.module.conv1.weight *= 1e-15
        network.module.conv1.bias.zero_()
    assert_same(compute(network, tiny.images(12), [at])[at].values, expected(network, tiny.images(12), at))
    with torch.no_grad():
        network.module.conv1.weight *= 1e-6
    with pytest.raises(ValueError, match=r"conv1@0: features are too small for products in float32; scale them up"):
        compute(network, tiny.images(12), [at])
    with torch.no_grad():
        network.module.conv1.weight.zero_()
    assert not compute(network, tiny.images(12), [at])[at].values.any()  # a dead layer is no error


def test_features_that_are_not_finite_are_found_with_the_first_image(cache: Path, passes: list[int]) -> None:
    network = tiny.network()
    with torch.no_grad():
        network.module.conv1.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"relu1@0: features are not finite"):
        compute(network, tiny.images(12))
    assert passes == PROBE[:1]


def test_an_image_that_the_network_cannot_take_is_an_error(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"tiny cannot be run on images of shape \(3, 9, 9\).*another image size"):
        compute(tiny.network(size=9), tiny.images(12))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_an_image(batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch size"):
        compute(tiny.network(), tiny.images(12), batch_size=batch_size)


def test_convolutions_on_a_gpu_are_not_rounded_to_tf32() -> None:
    before = torch.backends.cudnn.allow_tf32
    with activations.float32_convolutions(torch.device("cuda")):
        assert torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with activations.float32_convolutions(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32 == before


def test_autocast_rounds_no_features() -> None:
    network, batch, at = tiny.network(), torch.rand(3, 3, tiny.SIZE, tiny.SIZE), LayerAt("pool2", 1)
    known = activations.features(network, batch, [at])[at]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(activations.features(network, batch, [at])[at], known)


# What several networks share


def images_seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Images that were shown to each network, by its module; those of the probe as well."""
    seen: dict[int, int] = {}
    below = CNNF.below_target

    def counted(self: CNNF, x: Any, wanted: Any = ()) -> Any:
        seen[id(self)] = seen.get(id(self), 0) + len(x)
        return below(self, x, wanted)

    monkeypatch.setattr(CNNF, "below_target", counted)
    return seen


PROBED = sum(PROBE)
CNN_LAYERS = [LayerAt("relu1"), LayerAt("pool2")]


def test_a_cnn_of_the_same_weights_is_never_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass of its CNN-F is that CNN: same identity, same preprocessing."""
    cnn, cnnf, stimuli = tiny.network(iterations=0), tiny.network(iterations=2), tiny.images(40)
    alone = dict(layer_grams(cnn, stimuli, CNN_LAYERS, progress=False))
    monkeypatch.setenv(io.CACHE_VARIABLE, str(cache / "other"))
    seen = images_seen(monkeypatch)
    features = gram.Features([(cnn, stimuli, CNN_LAYERS), (cnnf, stimuli, AT)])
    features.probe()
    of_cnn, of_cnnf = features.compute(progress=False)
    assert seen == {id(cnnf.module): PROBED + 40}
    for at in CNN_LAYERS:
        assert np.array_equal(of_cnn[at].values, alone[at].values), "bit for bit"
    for at in AT:
        assert_same(of_cnnf[at].values, expected(cnnf, stimuli, at))


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny.network(iterations=0, seed=1),
        lambda: replace(tiny.network(iterations=0), preprocessing=Preprocessing(16, mean=(0.5, 0.5, 0.5))),
        lambda: replace(tiny.network(iterations=0), code=b"other"),
    ],
)
def test_another_cnn_is_run(cache: Path, monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    cnn, cnnf, stimuli = other(), tiny.network(iterations=2), tiny.images(12)
    seen = images_seen(monkeypatch)
    gram.Features([(cnn, stimuli, CNN_LAYERS), (cnnf, stimuli, AT)]).compute(progress=False)
    assert seen == {id(cnn.module): PROBED + 12, id(cnnf.module): PROBED + 12}


def test_two_feedbacks_share_the_first_pass_of_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, small, stimuli = tiny.network(), tiny.network(step=0.3, iterations=1), tiny.images(12)
    layers = [LayerAt("pool2"), LayerAt("pool2", 1)]
    runs = gram.Features([(small, stimuli, layers), (full, stimuli, [LayerAt("pool2", 1), LayerAt("pool2", 2)])]).runs
    assert {(id(run.network), at) for run in runs for at in run.keys} == {
        (id(full), LayerAt("pool2")),
        (id(full), LayerAt("pool2", 1)),
        (id(full), LayerAt("pool2", 2)),
        (id(small), LayerAt("pool2", 1)),
    }
    assert len(runs) == 2


@pytest.mark.parametrize("hooked", [False, True])
def test_the_same_images_are_shown_once(cache: Path, monkeypatch: pytest.MonkeyPatch, hooked: bool) -> None:
    """Of two regions, or of ten sessions; also to a network without identity."""
    network = tiny.network()
    if hooked:
        network.module.relu1.register_forward_hook(lambda *a: None)
    seen = images_seen(monkeypatch)
    features = gram.Features([(network, tiny.images(12), AT[:2]), (network, tiny.images(12), AT[1:])])
    first, second = features.compute(progress=False)
    assert seen == {id(network.module): PROBED + 12}
    assert np.array_equal(first[AT[1]].values, second[AT[1]].values)
    assert list(first) == AT[:2]
    with pytest.raises(KeyError):
        first[AT[2]]
    assert len(list((cache / "scratch").iterdir())) == hooked
    del features, first, second
    assert list((cache / "scratch").iterdir()) == []


def test_a_gram_that_is_taken_from_the_cache_is_told(cache: Path) -> None:
    found = layer_grams(tiny.network(), tiny.images(12), AT, progress=False)
    for path in (cache / "grams").iterdir():
        path.unlink()
    with pytest.raises(OSError, match=r"relu1@0: .*npz was removed or damaged while this run needed it; start it again"):
        found[AT[0]]


# Workers


def test_images_that_workers_decode_give_the_same_features(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, stimuli = tiny.network(), tiny.images(12)
    alone = compute(network, stimuli, batch_size=5)
    monkeypatch.setenv(io.CACHE_VARIABLE, str(cache / "other"))
    state = torch.random.get_rng_state()
    features = gram.Features([(network, stimuli, AT)], batch_size=5, workers=2)
    (found,) = features.compute(progress=False)
    for at in AT:
        assert np.array_equal(found[at].values, alone[at].values)
    assert 0 < features.waited < features.seconds
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are its own"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_as_without_workers(cache: Path, workers: int) -> None:
    good = tiny.images(12)
    bad = Images(good.ids, lambda i: b"no image" if i == 7 else good.read(i), "memory")
    with pytest.raises(ValueError, match=r"^memory: image 'image007' cannot be decoded"):
        compute(tiny.network(), bad, workers=workers)


# The cache


def test_the_second_time_nothing_is_computed(cache: Path, passes: list[int]) -> None:
    first = compute(tiny.network(), tiny.images(12), batch_size=5)
    assert passes == [*PROBE, 5, 5, 2]
    again = compute(tiny.network(), tiny.images(12), batch_size=5)
    assert len(passes) == 7
    for at in AT:
        assert np.array_equal(first[at].values, again[at].values)
        assert (first[at].at, first[at].n_features) == (again[at].at, again[at].n_features)


def test_only_what_is_missing_is_computed(cache: Path, passes: list[int]) -> None:
    compute(tiny.network(), tiny.images(12), AT[:2])
    passes.clear()
    found = compute(tiny.network(), tiny.images(12), batch_size=6)
    assert passes == [*PROBE, 6, 6]
    assert list(found) == AT


# Joint layers


def test_the_gram_of_a_joint_layer_is_that_of_its_parts_side_by_side(cache: Path, passes: list[int]) -> None:
    joint, last = LayerAt.parse("pool2@0+1+2"), LayerAt.parse("pool2@2")
    network, stimuli = tiny.network(), tiny.images(12)
    found = layer_grams(network, stimuli, [joint, last, joint], batch_size=12, progress=False)
    assert passes == [*PROBE, 12]
    assert list(found) == [joint, last], "parts that were not asked for are not in the result"
    assert len(list((cache / "grams").iterdir())) == 3, "each part is cached, and the sum is not"
    batch = torch.stack([network.preprocessing(stimuli.decode(i)) for i in range(12)])
    with torch.inference_mode():
        maps = activations.extract(network.module, batch, joint.parts)
    X = torch.cat([maps[at].flatten(1).double() for at in joint.parts], dim=1).numpy()
    assert_same(found[joint].values, X @ X.T)
    assert (found[joint].at, found[joint].n_features) == (joint, X.shape[1])
    assert_same(found[last].values, expected(network, stimuli, last))


def test_parts_with_few_features_are_side_by_side_as_long_as_these_are_few(cache: Path) -> None:
    network, stimuli = tiny.network(), tiny.images(22)
    for name, shape in (("fc@0+1", (22, 10)), ("fc@0+1+2", (22, 22))):
        joint = LayerAt.parse(name)
        found = compute(network, stimuli, [joint], batch_size=22)[joint]
        parts = compute(network, stimuli, list(joint.parts), batch_size=22)
        assert (found.values.shape, found.n_features) == (shape, 5 * len(parts))
        assert_same(found.values, np.sum([whole(part.values) for part in parts.values()], axis=0))


def test_parts_that_are_cached_are_not_run_again(cache: Path, passes: list[int]) -> None:
    compute(tiny.network(), tiny.images(12), [LayerAt("pool2"), LayerAt("pool2", 2)])
    passes.clear()
    compute(tiny.network(), tiny.images(12), [LayerAt.parse("pool2@0+2")])
    assert passes == []


def test_a_network_is_not_asked_for_a_joint_layer() -> None:
    with pytest.raises(ValueError, match=r"pool2@0\+1: a joint feature space is made of Grams"):
        tiny.network().module.unroll(torch.zeros(1, 3, 16, 16), return_layers=["pool2@0+1"])
    with pytest.raises(ValueError, match=r"pool2@7: iteration 7 is not run"):
        layer_grams(tiny.network(), tiny.images(12), [LayerAt.parse("pool2@0+7")])


# Features of norm 1


def test_features_of_each_image_are_scaled_to_norm_1(cache: Path) -> None:
    joint, network, stimuli = LayerAt.parse("pool2@0+2"), tiny.network(), tiny.images(12)
    plain = layer_grams(network, stimuli, [joint], progress=False)[joint].values
    (found,) = gram.Features([(network, stimuli, [joint])], unit_norm=True).compute(progress=False)
    batch = torch.stack([network.preprocessing(stimuli.decode(i)) for i in range(12)])
    with torch.inference_mode():
        maps = [one.flatten(1).double() for one in activations.extract(network.module, batch, joint.parts).values()]
    X = torch.cat([one / one.norm(dim=1, keepdim=True) for one in maps], dim=1).numpy()
    assert_same(found[joint].values, X @ X.T)
    again = layer_grams(network, stimuli, [joint], progress=False)[joint].values
    assert np.array_equal(again, plain), "the two do not share a file"
    assert np.abs(centred(plain) / np.abs(plain).max() - centred(X @ X.T) / np.abs(X @ X.T).max()).max() > 1e-3


def test_a_row_of_zeros_stays_and_others_have_norm_1() -> None:
    rows = np.array([[0, 0], [3, 4], [1e-30, 0]], dtype=np.float32)
    np.testing.assert_allclose(
        activations.of_unit_norm(torch.from_numpy(rows)), np.array([[0, 0], [0.6, 0.8], [1, 0]]), rtol=1e-6
    )


def key(network: Network | None = None, name: str = "pool2@1", images: str = "digest") -> str:
    return gram_key(network or tiny.network(), images, LayerAt.parse(name), 8)


def changed(weight: str = "conv1.bias") -> Network:
    network = tiny.network()
    with torch.no_grad():
        tensor = network.module.state_dict()[weight].view(-1)
        tensor[-1] = torch.nextafter(tensor[-1], torch.tensor(torch.inf))
    return network


def on(network: Network, device: str) -> Network:
    network.module.to(device)
    return network


OTHERS = {
    "weight": lambda: key(changed()),
    "last weight": lambda: key(changed("fc.weight")),
    "preprocessing size": lambda: key(tiny.network(size=17)),
    "preprocessing mean": lambda: key(replace(tiny.network(), preprocessing=Preprocessing(16, mean=(0.5, 0.5, 0.5)))),
    "images": lambda: key(images="other"),
    "iteration": lambda: key(name="pool2@2"),
    "first pass": lambda: key(name="pool2@0"),
    "feedback map": lambda: key(name="pool2@1:feedback"),
    "layer": lambda: key(name="relu2@1"),
    "step": lambda: key(tiny.network(step=0.5)),
    "match_norm": lambda: key(tiny.network(match_norm=False)),
    "ada_relu": lambda: key(tiny.network(ada_relu="printed")),
    "target": lambda: key(tiny.network(target="relu1")),
    "tolerance": lambda: key(tiny.network(tolerance=1e-3)),
    "device": lambda: key(on(tiny.network(), "meta")),
    "user's code": lambda: key(replace(tiny.network(), code=b"other")),
}


@pytest.mark.parametrize("change", OTHERS)
def test_another_key(change: str) -> None:
    assert OTHERS[change]() != key()


def test_keys_are_all_different() -> None:
    assert len({make() for make in OTHERS.values()} | {key()}) == len(OTHERS) + 1  # type: ignore[no-untyped-call]


def test_the_same_key() -> None:
    assert key() == key(tiny.network())
    assert key() == key(tiny.network(iterations=4)), "how many iterations follow does not matter"


def test_the_first_pass_is_shared_with_the_plain_cnn() -> None:
    cnn = key(tiny.network(iterations=0), "pool2@0")
    assert cnn == key(tiny.network(step=0.3, target="relu1"), "pool2@0")
    assert cnn != key(tiny.network(seed=1, iterations=0), "pool2@0")


def test_another_version_of_the_software_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert key() != before


def test_the_versions_that_make_features_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    for module, name in (
        (identity, "FEATURES_VERSION"),
        (importlib.metadata, "version"),  # torchvision's
        (identity.PIL, "__version__"),  # type: ignore[attr-defined]
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, (lambda package: "99") if name == "version" else 99)
            assert key() != before, name


def test_the_batch_size_is_in_the_key() -> None:
    network = tiny.network()
    assert gram_key(network, "images", AT[0], 8) != gram_key(network, "images", AT[0], 4)


def test_a_network_with_a_hook_is_not_cached(cache: Path, passes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """What a hook does to the features cannot be known: taken from a cache they could be those of another hook."""
    for factor in (1.0, 3.0):
        network = tiny.network(iterations=0)
        network.module.relu1.register_forward_hook(lambda module, inputs, output, factor=factor: output * factor)
        plain = Network(torch.nn.Sequential(*network.module.children()), network.preprocessing, name="plain")
        passes.clear()
        compute(replace(plain, module=plain.module.eval()), tiny.images(12), [LayerAt("1")])
        assert len(passes) > len(PROBE)
        assert "not kept in the cache, since module '1' has a forward hook" in capsys.readouterr().err
    assert not list((cache / "grams").glob("*"))


def test_images_that_change_during_a_run_are_an_error_and_nothing_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [tiny.encoded(picture) for picture in tiny.pictures(24)]
    reads = []

    def read(i: int) -> bytes:
        reads.append(i)
        return content[i + 12 if i == 11 and reads.count(11) > 1 else i]

    with pytest.raises(ValueError, match="image011"):
        compute(tiny.network(), Images(tuple(f"image{i:03}" for i in range(12)), read, "a folder"), AT[:1])
    assert not list((cache / "grams").glob("*"))


def test_an_image_with_another_byte_is_computed_anew(cache: Path, passes: list[int]) -> None:
    stimuli = tiny.images(12)
    compute(tiny.network(), stimuli, AT[:1])
    passes.clear()
    other = Images(stimuli.ids, lambda i: tiny.encoded(tiny.pictures(12)[i] ^ (i == 11)), stimuli.where)
    found = compute(tiny.network(), other, AT[:1])
    assert len(passes) > len(PROBE)
    assert_same(found[AT[0]].values, expected(tiny.network(), other, AT[0]))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "pickle"])
def test_a_damaged_cache_file_is_computed_again(cache: Path, damage: str) -> None:
    network, stimuli = tiny.network(), tiny.images(12)
    first = compute(network, stimuli, AT[:2])
    path = cache / "grams" / f"{gram_key(network, stimuli.digest(), AT[1], 8)}.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "pickle":
        np.savez(path, values=np.array([{"a": print}], dtype=object), n_features=3)
    else:
        path.write_bytes({"cut": content[:-200], "flipped": bytes(content), "empty": b""}[damage])  # type: ignore[arg-type]
    with pytest.warns(DamagedCacheWarning, match=r"is damaged .*computing pool2@1 again"):
        again = compute(network, stimuli, AT[:2])
    assert np.array_equal(again[AT[1]].values, first[AT[1]].values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third = compute(network, stimuli, AT[:2])
    assert np.array_equal(third[AT[1]].values, first[AT[1]].values), "and is whole afterwards"


# Interruptions


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Let pass number ``after`` (the first ones try the network) end in ``error``."""
    extract, seen = activations.extract, []

    def fails(model: Any, batch: Any, layers: Any, *name: Any) -> Any:
        seen.append(1)
        if len(seen) > after:
            raise error("enough")
        return extract(model, batch, layers, *name)

    monkeypatch.setattr(activations, "extract", fails)


def test_an_interrupted_run_goes_on_from_the_rows_done(
    cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    network, stimuli = tiny.network(), tiny.images(12)
    with monkeypatch.context() as patch:
        interrupt(patch, after=len(PROBE) + 3)
        with pytest.raises(KeyboardInterrupt):
            compute(network, stimuli, batch_size=2)
    assert len(list((cache / "scratch").iterdir())) == len(AT)
    passes = request.getfixturevalue("passes")
    found = compute(network, stimuli, batch_size=2)
    assert passes == [*PROBE, 2, 2, 2], "six images were done"
    for at in AT:
        assert_same(found[at].values, expected(network, stimuli, at))
    assert list((cache / "scratch").iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, OSError])
def test_any_error_leaves_the_rows_done(
    cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, error: type[Exception]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, after=len(PROBE) + 4, error=error)
        with pytest.raises(error, match="enough"):
            compute(tiny.network(), tiny.images(12), batch_size=2)
    passes = request.getfixturevalue("passes")
    compute(tiny.network(), tiny.images(12), batch_size=2)
    assert passes == [*PROBE, 2, 2], "eight images were done"
    assert list((cache / "scratch").iterdir()) == []


@pytest.mark.parametrize("fails_at", range(len(AT)))
def test_an_error_while_k_is_made_loses_no_features(
    cache: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int], fails_at: int
) -> None:
    """Also where some layers have their K already, and their rows are gone."""
    made, product = [], scratch_.Scratch.gram

    def too_large(scratch: scratch_.Scratch, name: str) -> npt.NDArray[Any]:
        made.append(scratch)
        if len(made) > fails_at:
            raise MemoryError
        return product(scratch)

    with monkeypatch.context() as patch:
        patch.setattr(scratch_.Scratch, "gram", too_large)
        with pytest.raises(MemoryError):
            compute(tiny.network(), tiny.images(12))
    passes.clear()
    found = compute(tiny.network(), tiny.images(12))
    assert passes == PROBE
    for at in AT:
        assert_same(found[at].values, expected(tiny.network(), tiny.images(12), at))


def test_layers_that_stopped_at_different_images_go_on_together(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one layer stopped late, one of another early; then a run of both."""
    for at, passed in ((AT[0], 4), (AT[3], 1)):
        with monkeypatch.context() as patch:
            interrupt(patch, after=len(PROBE) + passed)
            with pytest.raises(KeyboardInterrupt):
                compute(tiny.network(), tiny.images(12), [at], batch_size=2)
    found = compute(tiny.network(), tiny.images(12), batch_size=2)
    for at in AT:
        assert_same(found[at].values, expected(tiny.network(), tiny.images(12), at))


def test_a_network_without_identity_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could go on from it: its features are known to this run alone."""
    network = tiny.network()
    network.module.relu1.register_forward_hook(lambda *a: None)
    interrupt(monkeypatch, after=len(PROBE) + 2, error=RuntimeError)
    with pytest.raises(RuntimeError, match="enough"):
        compute(network, tiny.images(12), batch_size=2)
    assert list((cache / "scratch").iterdir()) == []


def spoil_cut(path: Path) -> None:
    """A row that was half written."""
    os.truncate(path, path.stat().st_size - 3)


def spoil_zeros(path: Path) -> None:
    """What a power cut leaves: the right length, the end never written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


def spoil_longer(path: Path) -> None:
    """Rows of which no sum was written."""
    path.write_bytes(path.read_bytes() + b"x" * 5000)


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_zeros, spoil_longer, Path.unlink])
@pytest.mark.parametrize("suffix", ["f32", "crc"])
def test_rows_that_a_crash_damaged_are_computed_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, suffix: str
) -> None:
    network, stimuli = tiny.network(), tiny.images(12)
    monkeypatch.setattr(scratch_, "BLOCK_BYTES", 4 * 12 * 500)
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            compute(network, stimuli, batch_size=2)
    spoil(sorted((cache / "scratch").glob(f"*/*.{suffix}"))[1])
    found = compute(network, stimuli, batch_size=2)
    for at in AT:
        assert_same(found[at].values, expected(network, stimuli, at))


def test_old_scratch_is_removed_and_young_is_kept(cache: Path) -> None:
    for name, days in (("old", 8), ("young", 6)):
        folder = io.cache_folder("scratch", name)
        (folder / "0-0.f32").write_bytes(b"1234")
        os.utime(folder, (time.time() - days * 86400,) * 2)
    compute(tiny.network(), tiny.images(12), AT[:1])
    assert [path.name for path in (cache / "scratch").iterdir()] == ["young"]


def test_the_oldest_scratch_that_nobody_holds_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hours in (("oldest", 3), ("held", 4), ("older", 2), ("young", 1)):
        folder = io.cache_folder("scratch", name)
        (folder / "0.f32").write_bytes(bytes(100))
        os.utime(folder, (time.time() - hours * 3600,) * 2)

    def usage(path: Path) -> Any:
        return type("Usage", (), {"free": 1000 - sum(file.stat().st_size for file in path.glob("*/*.f32"))})

    monkeypatch.setattr(scratch_.shutil, "disk_usage", usage)  # type: ignore[attr-defined]
    with FileLock(io.cache_folder("locks") / "held.lock"):
        scratch_.make_room(800)
    assert {path.name for path in (cache / "scratch").iterdir()} == {"held", "young"}


def test_what_interrupted_runs_left_counts_as_free(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (io.cache_folder("scratch", "mine") / "0-0.f32").write_bytes(bytes(4000))
    monkeypatch.setattr(scratch_.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))  # type: ignore[attr-defined]
    room = scratch_.room_on_disk(2**30)
    assert scratch_.grouped({LayerAt("a"): 100}, 10, room) == [[LayerAt("a")]]
    with pytest.raises(OSError, match="scratch"):
        scratch_.grouped({LayerAt("a"): 113}, 10, room)


# Other processes

CHILD = """
import sys
sys.path.insert(0, {tests!r})
import tiny, torch
from cnnf_brain import activations, gram
from test_gram import AT
extract, passes = activations.extract, []
def halting(model, batch, layers, *name):
    passes.append(len(batch))
    if len(passes) > 4:  # behind the probe
        print("images", sum(passes[4:]), flush=True)
        sys.stdin.readline()
    return extract(model, batch, layers, *name)
activations.extract = halting
found = gram.layer_grams(tiny.network(), tiny.images(12), AT, batch_size=2, progress=False)
print("sum", *(found[at].values.sum().hex() for at in AT), flush=True)
"""


@contextmanager
def child(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that computes AT, says how many images it has taken, and goes on with every line that it is given."""
    code = CHILD.format(tests=str(Path(__file__).parent))
    env = {**os.environ, "CNNF_BRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], lines: int) -> None:
    assert process.stdin is not None
    process.stdin.write("\n" * lines)
    process.stdin.flush()


def wait_for(stream: IO[str] | None, words: str) -> None:
    assert stream is not None
    assert any(words in line for line in stream), f"the process ended before it said {words!r}"


def test_a_killed_process_is_gone_on_from(cache: Path, passes: list[int]) -> None:
    with child(cache) as process:
        say(process, 2)
        wait_for(process.stdout, "images 6")  # images 4 and 5 are on their way, 0 to 3 are written
        process.kill()
    found = compute(tiny.network(), tiny.images(12), batch_size=2)
    assert passes == [*PROBE, 2, 2, 2, 2]
    for at in AT:
        assert_same(found[at].values, expected(tiny.network(), tiny.images(12), at))


@pytest.mark.slow
def test_two_processes_at_once_compute_once(cache: Path) -> None:
    with child(cache) as first:
        wait_for(first.stdout, "images 2")  # it has the lock
        with child(cache) as second:
            say(second, 20)
            wait_for(second.stderr, "another process computes the same features; waiting for it")
            outputs = [first.communicate("\n" * 20)[0], second.communicate()[0]]
    assert "images" not in outputs[1], "the second one runs the first images to try the network, no more"
    sums = [[line for line in output.splitlines() if line.startswith("sum")] for output in outputs]
    assert sums[0] == sums[1] != []
    assert list((cache / "scratch").iterdir()) == []


def test_after_waiting_for_a_process_that_died_the_rest_is_computed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, stimuli = tiny.network(), tiny.images(12)
    scratch = scratch_.Scratch(gram_key(network, stimuli.digest(), AT[0], 8), 6 * 14 * 14, 12)
    held = threading.Event()

    def hold() -> None:
        with FileLock(scratch.lock.lock_file):
            held.set()
            time.sleep(0.5)

    threading.Thread(target=hold).start()
    held.wait()
    found = compute(network, stimuli, AT[:1])
    assert "waiting for it" in capsys.readouterr().err
    assert_same(found[AT[0]].values, expected(network, stimuli, AT[0]))


def test_batch_size_changes_k_by_less_than_one_in_a_hundred_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, batch_size in enumerate((1, 7, 30)):
        monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / str(number)))
        network = tiny.network(iterations=2)
        assert isinstance(network.module, CNNF)
        found.append(compute(network, tiny.images(30), batch_size=batch_size))
    for other in found[1:]:
        for at in AT:
            assert_same(other[at].values, found[0][at].values)
