"""Weight files, and torchvision's published weights served by a local server under a name like theirs."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

import cnnf_brain
from cnnf_brain.model import weights
from cnnf_brain.model.weights import Card, HeadlessNetworkWarning, published_available, read_card, read_weights

CLASSES = 4


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(models.alexnet(weights=None, num_classes=CLASSES).state_dict())


def load(path: Path | str) -> Any:
    return cnnf_brain.alexnet(path, num_classes=CLASSES, iterations=1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_every_kind_of_file_gives_the_same_parameters(state: dict[str, torch.Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"alexnet{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = load(path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert read_card(path) == Card()


def test_half_precision_is_read_as_float32(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    read = read_weights(tmp_path / "half.safetensors")
    assert all(torch.equal(tensor, state[name].half().float()) for name, tensor in read.items())


def test_convolutions_alone_feed_back_from_the_top_feature_map(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({name: tensor for name, tensor in state.items() if name.startswith("features.")}, tmp_path / "f.safetensors")
    with pytest.warns(HeadlessNetworkWarning, match="holds the convolutions of alexnet alone"):
        model = load(tmp_path / "f.safetensors")
    x = torch.randn(2, 3, 96, 96)
    result = model.eval().unroll(x, return_layers=["features.12@1:feedback"])
    assert result.logits.shape == (2, 2, 256, 2, 2)
    assert torch.equal(next(iter(result.layers.values())), result.logits[1])  # the top map is what feeds back


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"module.{k}": v for k, v in s.items()}, r"missing: features.0.weight, .* and 13 more.*strip 'module.'"),
        (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, r"saved from a compiled module"),
        (lambda s: {"model": torch.zeros(1), **s}, r"not in the network: model\. Likely cause: a training checkpoint"),
        (
            lambda s: {**s, "classifier.6.weight": torch.zeros(10, 4096), "classifier.6.bias": torch.zeros(10)},
            r"classifier.6.weight is \(10, 4096\), expected \(4, 4096\).*another number of classes",
        ),
        (
            lambda s: {k: v for k, v in s.items() if "features.3" not in k},
            r"missing: features.3.weight, features.3.bias\. .*incomplete",
        ),
        (lambda s: {"a": torch.zeros(1)}, r"weights of another architecture"),
    ],
)
def test_what_does_not_fit_is_listed_with_the_likely_cause(
    state: dict[str, torch.Tensor], tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    save_file(change(state), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w.safetensors")


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    bad, sign = tmp_path / "bad.pt", tmp_path / "it-ran"
    torch.save({"w": Touch(str(sign))}, bad)
    with pytest.raises(ValueError, match="holds more than tensors, or is damaged, and was not loaded"):
        read_weights(bad)
    assert not sign.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_an_error(state: dict[str, torch.Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"damaged"):
        load(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file that ends in .safetensors, .pt, .pth"):
        read_weights(tmp_path / "weights.h5")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"expected a mapping from names to tensors"):
        read_weights(tmp_path / "list.pt")


class Entry:
    """As torchvision's entry of published weights."""

    def __init__(self, url: str) -> None:
        self.url, self.meta = url, {"_file_size": 1.0}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder that a local server shows, and its address; torch's cache is in another folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def publish(state: Any, served: Any, monkeypatch: pytest.MonkeyPatch, cut: int | None = None) -> Path:
    """Serve ``state`` as torchvision would, its hash in its name; the path where the download is to lie."""
    folder, address = served
    torch.save(state, folder / "w.pth")
    content = (folder / "w.pth").read_bytes()
    name = f"alexnet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content[:cut])
    monkeypatch.setattr(weights, "published_entry", lambda arch, which: Entry(f"{address}/{name}"))
    return Path(torch.hub.get_dir(), "checkpoints", name)


def test_published_weights_are_fetched_once_and_checked(
    state: dict[str, torch.Tensor],
    served: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    target = publish(state, served, monkeypatch)
    available, why = published_available("alexnet", "IMAGENET1K_V1")
    assert available
    assert "can be downloaded (" in why
    model = load("IMAGENET1K_V1")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert "downloading http://127.0.0.1" in capfd.readouterr().err
    for path in served[0].iterdir():
        path.unlink()  # from now on the cache alone
    assert published_available("alexnet", "IMAGENET1K_V1") == (True, "alexnet weights IMAGENET1K_V1 are in the cache")
    assert torch.equal(load("IMAGENET1K_V1").state_dict()["features.0.weight"], state["features.0.weight"])
    assert target.is_file()


def test_a_truncated_download_is_an_error_and_leaves_nothing(
    state: dict[str, torch.Tensor], served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = publish(state, served, monkeypatch, cut=50_000)
    with pytest.raises(OSError, match=r"cannot be had .*invalid hash"):
        load("IMAGENET1K_V1")
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_weights_that_are_not_published_and_a_host_that_is_down(
    state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"torchvision publishes IMAGENET1K_V1, DEFAULT; or give a path"):
        load("IMAGENET1K_V7")
    monkeypatch.setattr(weights, "published_entry", lambda arch, which: Entry("http://127.0.0.1:9/alexnet-00000000.pth"))
    available, why = published_available("alexnet", "IMAGENET1K_V1")
    assert not available
    assert "cannot be downloaded" in why
    with pytest.raises(OSError, match=r"connect to the network and try again, or give a file that you have"):
        load("IMAGENET1K_V1")
