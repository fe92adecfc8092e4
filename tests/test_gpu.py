"""On a CUDA GPU everything computes what it computes on the CPU; CNNF_BRAIN_TEST_DEVICE=cpu rehearses these tests without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from trainer.tiny_imagenet import flags, imagenet, without_dropout, write_images

from cnnf_brain import CNNF, Recordings, Scoring, compare, from_torchvision, scratch, small_net
from cnnf_brain.activations import float32_convolutions
from cnnf_brain.attacks import threats
from cnnf_brain.attacks.gradient import PGD
from cnnf_brain.gram import layer_grams
from cnnf_brain.model import zoo
from cnnf_brain.model.weights import read_weights
from cnnf_brain.networks import place
from cnnf_brain.predictivity import kernel
from cnnf_brain.predictivity.kernel import participation_ratio
from cnnf_brain.predictivity.pls import cross_predict
from cnnf_brain.predictivity.ridge import ridge_predict
from cnnf_brain.predictivity.scores import score_predictions
from cnnf_brain.trainer.config import AMPS, LossWeights, check_amp
from cnnf_brain.trainer.loop import Objective
from cnnf_brain.trainer.small import UNITS
from cnnf_brain.types import LayerAt, Split

DEVICE = torch.device(os.environ.get("CNNF_BRAIN_TEST_DEVICE", "cuda"))
missing = DEVICE.type == "cuda" and not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(missing, reason="needs a CUDA GPU")]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions in float32 proper."""
    with float32_convolutions(DEVICE):
        yield


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, on the CPU."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


def case(name: str) -> tuple[CNNF, Tensor, Tensor]:
    """A network in float64 with random weights, images and labels: the small net, or a VGG with norms matched."""
    torch.manual_seed(0)
    if name == "small":
        model: CNNF = small_net(iterations=2, step=0.1, match_norm=True)
        x = torch.rand(6, 1, 28, 28) * 2 - 1
    else:
        model, x = (
            from_torchvision("vgg11", num_classes=10, head="linear", iterations=2, step=0.1),
            torch.randn(2, 3, 32, 32),
        )
    return model.double(), x.double(), torch.arange(len(x)) % 10


def gradients(objective: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the gradients of all weights in a row."""
    for parameter in objective.parameters():
        parameter.grad = None
    total, _ = objective(images, labels)
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["small", "vgg"])
def test_logits_loss_and_gradients_are_those_of_the_cpu(name: str, channels_last: bool) -> None:
    model, x, y = case(name)
    model.eval()
    expected = [model.unroll(x).logits, *gradients(Objective(model, LossWeights()), x, y)]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model, x, y = model.to(DEVICE).to(memory_format=memory), x.to(DEVICE, memory_format=memory), y.to(DEVICE)
    found = [model.unroll(x).logits, *gradients(Objective(model, LossWeights()), x, y)]
    assert [distance(a, b) for a, b in zip(found, expected, strict=True)] == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("amp", AMPS)
def test_a_step_in_mixed_precision_is_close_to_one_in_float32(amp: str, recompute: bool) -> None:
    if DEVICE.type == "cuda":
        check_amp(amp, DEVICE)  # a GPU that is lent for this has the instructions
    elif amp == "float16":
        pytest.skip("float16 is for GPUs")
    model, x, y = case("vgg")
    model, x, y = model.float().eval().to(DEVICE), x.float().to(DEVICE), y.to(DEVICE)
    exact = gradients(Objective(model, LossWeights()), x, y)
    mixed = gradients(Objective(model, LossWeights(), amp=amp, recompute=recompute), x, y)
    assert all(values.isfinite().all() for values in mixed)
    assert 0 < distance(mixed[0], exact[0]) < 0.02
    assert 0 < distance(mixed[1], exact[1]) < 0.2


def test_compiled_is_the_same_as_not() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4))
    model = CNNF(layers, iterations=1, match_norm=True).to(DEVICE)  # small, for compilation takes most of the time
    x, y = torch.randn(8, 3, 8, 8, device=DEVICE), torch.arange(8, device=DEVICE) % 4
    objective = Objective(model, LossWeights())
    plain = gradients(objective, x, y)
    objective.compile()
    for found, expected in zip(gradients(objective, x, y), plain, strict=True):
        assert distance(found, expected) < 1e-3


def test_gradients_through_the_processes_of_a_run(tmp_path: Path) -> None:
    """One rank, but over what several would use: NCCL on a GPU."""
    model, x, y = case("small")
    model, x, y = model.eval().to(DEVICE), x.to(DEVICE), y.to(DEVICE)
    objective = Objective(model, LossWeights())
    alone = gradients(objective, x, y)
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        cards = [0] if DEVICE.type == "cuda" else None
        together = gradients(DistributedDataParallel(objective, cards), x, y)
    finally:
        dist.destroy_process_group()
    assert [distance(a, b) for a, b in zip(together, alone, strict=True)] == pytest.approx([0, 0], abs=1e-9)


def test_training_from_disk_continues_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "sequential", without_dropout)
    data = write_images(tmp_path / "images")
    device = ("--device", DEVICE.type, "--channels-last", "--workers", 2)
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        assert imagenet.main(flags(data, tmp_path / name, *device, steps=steps)) == 0
    whole, parts = (read_weights(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert max(distance(parts[name], whole[name]) for name in whole) < 1e-4  # a GPU may add in another order


def test_k_and_predictions_from_it_are_those_of_the_cpu(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny.images(40)
    layers = [LayerAt("relu2", 0), LayerAt("relu2", 2), LayerAt("fc", 1)]
    expected = layer_grams(tiny.network(), images, layers, progress=False)
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(cache / "another"))
    found = layer_grams(place(tiny.network(), DEVICE), images, layers, progress=False)
    rows = np.arange(len(images))
    splits = [Split(rows[rows % 4 != fold], rows[rows % 4 == fold]) for fold in range(4)]
    responses = np.random.default_rng(0).normal(size=(len(images), 5))
    for at in layers:
        ours, theirs = (torch.from_numpy(np.asarray(grams[at].values)) for grams in (found, expected))
        assert distance(ours, theirs) < 1e-5
        ours, theirs = (
            torch.from_numpy(np.concatenate(cross_predict(grams[at].values, responses, splits, 5).values, axis=1))
            for grams in (found, expected)
        )
        assert distance(ours, theirs) < 1e-3


@pytest.mark.parametrize("held", [True, False])
def test_k_is_summed_on_the_device(held: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features that stay there, or that went through files for want of room; in blocks and tiles as where room is short."""
    images, layers = tiny.images(40), [LayerAt("relu2", 0), LayerAt("relu2", 2), LayerAt("fc", 1)]
    expected = layer_grams(tiny.network(), images, layers, progress=False)
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(cache / "another"))
    monkeypatch.setattr(scratch, "BLOCK_BYTES", 4 * 40 * 15)
    room = 2**20 if held else scratch.gram_bytes(len(images))
    monkeypatch.setattr(scratch, "room_on", lambda device: room)
    if held:
        monkeypatch.setattr(scratch.Rows, "append", lambda *a: pytest.fail("features left the device"))
    torch.set_float32_matmul_precision("medium")
    try:
        found = layer_grams(place(tiny.network(), DEVICE), images, layers, progress=False)
    finally:
        assert torch.get_float32_matmul_precision() == "medium", "what was set is set again"
        torch.set_float32_matmul_precision("highest")
    assert list((cache / "another" / "scratch").iterdir()) == []
    for at in layers:
        ours, theirs = (torch.from_numpy(np.asarray(grams[at].values)) for grams in (found, expected))
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 1e-5
        assert torch.device(found[at].device).type == DEVICE.type


@pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")
@pytest.mark.parametrize("n_features", [12, 300])
def test_regressions_on_the_device_give_r_of_the_cpu(n_features: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, n_features))
    y = x[:, :5] + rng.standard_normal((100, 5))
    gram = x if 2 * n_features < len(x) else x @ x.T
    rows = np.arange(len(x))
    splits = [Split(rows[rows % 5 != fold], rows[rows % 5 == fold]) for fold in range(5)]
    there: Any = torch.from_numpy(gram).to(DEVICE)
    methods: list[Any] = [lambda k: cross_predict(k, y, splits, 5), lambda k: cross_predict(k, y, splits, 5, per_site=True)]
    for method in (*methods, lambda k: ridge_predict(k, y, splits)[0]):
        here, found = (score_predictions(method(k), y).r for k in (gram, there))
        assert np.abs(found - here).max() < 1e-6
    assert participation_ratio(there) == pytest.approx(participation_ratio(gram))


@pytest.mark.filterwarnings("ignore::cnnf_brain.predictivity.ridge.GridEndWarning")
def test_a_comparison_runs_its_regressions_on_the_device(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn makes the folds")
    images = tiny.images(40)
    recordings = Recordings.from_arrays(np.random.default_rng(0).standard_normal((40, 6)), images, region="V4")
    scoring = Scoring(metric=("pls", "ridge", "rsa"), components=3)
    asked: dict[str, Any] = {"layers": ["relu2@2", "fc@1"], "scoring": scoring, "progress": False}
    expected = compare(tiny.network(), None, recordings, **asked)
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(cache / "another"))
    monkeypatch.setattr(scratch, "GPU_IMAGES", 40)
    monkeypatch.setattr(scratch, "room_on", lambda device: 2**31)
    times, seen = kernel.like, list[type]()

    def like(values: Any, other: Any) -> Any:
        seen.append(type(other))
        return times(values, other)

    monkeypatch.setattr(kernel, "like", like)
    found = compare(place(tiny.network(), DEVICE), None, recordings, **asked)
    assert torch.Tensor in seen
    for one, other in zip(found.evaluations, expected.evaluations, strict=True):
        ours, theirs = (np.asarray(getattr(row.scores, "r", np.nan)) for row in (one, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-3)  # of random sites, from features that differ in float32
        assert one.effective_dimension == pytest.approx(other.effective_dimension, rel=1e-4)


def test_an_attack_finds_what_it_finds_on_the_cpu() -> None:
    torch.manual_seed(0)
    model: Any = small_net(iterations=1, step=0.1, match_norm=True).double().eval()
    x, y = torch.rand(8, 1, 28, 28).double(), torch.arange(8)
    raised = []
    for device in (torch.device("cpu"), DEVICE):
        threat = threats.end_to_end(threats.WithPreprocessing(model.to(device), UNITS))
        attack, images, labels = PGD(5, seed=1), x.to(device), y.to(device)
        made = attack.perturb(threat, images, labels, 0.1, attack.start(images))
        assert (made - images).abs().max() <= 0.1 + 1e-6
        losses = [float(nn.functional.cross_entropy(threat.scored(batch).detach(), labels)) for batch in (images, made)]
        assert losses[1] > losses[0]
        raised.append(losses[1] - losses[0])
    assert raised[1] == pytest.approx(raised[0], rel=0.2)
