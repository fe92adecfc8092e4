"""Networks at Hugging Face: what `hub_folder` writes is loaded again, at a commit and no other way; no test asks the network."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import cnnf_brain as cb
from cnnf_brain.compare import choice
from cnnf_brain.layers import main as layers
from cnnf_brain.model.zoo import shipped_weights

hub: Any = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (pip install '.[hub]')")
COMMIT = "0123456789" * 4
SPEC = f"hf:lab/small-net@{COMMIT}"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that `hub_folder` wrote, in the place of Hugging Face's; its cache holds links, as the real one does."""
    folder = cb.hub_folder(shipped_weights(True), tmp_path / "repository", license="mit")

    def download(repo_id: str, filename: str, *, revision: str) -> str:
        assert (repo_id, revision) == ("lab/small-net", COMMIT)
        link = tmp_path / "cache" / filename
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(folder / filename)
        return str(link)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return folder


@pytest.mark.usefixtures("published")
def test_a_published_network_is_the_one_that_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    found, mine = cb.load_network(SPEC, device="cpu"), cb.load_network("small", device="cpu")
    assert (found.weights, found.feedback, found.layer_of("IT")) == (SPEC, "feedback trained", "relu3")
    assert found.identity == mine.identity
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(found.module(x), mine.module(x))
    assert cb.load_network(SPEC, iterations=0, device="cpu").iterations == 0
    assert layers([SPEC]) == 0
    assert "small CNN-F: layers" in capsys.readouterr().out
    chosen = choice.choose([(SPEC, None)])
    assert chosen.baseline is not None
    assert (chosen.models[0].label, chosen.baseline.label) == (SPEC, "shipped, Fashion-MNIST")


@pytest.mark.parametrize("shipped", [True, False])
def test_the_model_card_is_one(tmp_path: Path, shipped: bool) -> None:
    card = hub.ModelCard.load(cb.hub_folder(shipped_weights(shipped), tmp_path, license="mit") / "README.md")
    inside = json.loads(Path(shipped_weights(shipped)).with_suffix(".json").read_text())
    assert (card.data.license, card.data.library_name) == ("mit", "cnnf-brain")
    assert card.data.datasets == ["zalando-datasets/fashion_mnist"]
    assert [one.metric_value for one in card.data.eval_results] == inside["test_accuracy"]
    assert inside["title"] in card.text
    assert "hf:OWNER/NAME@COMMIT" in card.text


def test_the_shipped_pair_has_a_model_card_and_a_licence() -> None:
    card = hub.ModelCard.load(Path(str(resources.files("cnnf_brain"))) / "pretrained" / "README.md")
    assert card.data.license == "mit"
    for name in ("fashion_cnn", "fashion_cnnf"):
        shares = json.loads((Path(str(resources.files("cnnf_brain"))) / "pretrained" / f"{name}.json").read_text())[
            "test_accuracy"
        ]
        assert ", ".join(f"{100 * share:.2f} %" for share in shares) in card.text


@pytest.mark.parametrize(
    "spec", ["hf:lab/net", "hf:lab/net@main", "hf:lab/net@0123abc", f"hf:net@{COMMIT}", f"hf:../a/b@{COMMIT}"]
)
def test_a_commit_is_asked_for(spec: str) -> None:
    with pytest.raises(ValueError, match="expected hf:OWNER/NAME@COMMIT, with all 40 digits of a commit"):
        cb.load_network(spec)


@pytest.mark.usefixtures("published")
def test_it_brings_its_weights() -> None:
    with pytest.raises(ValueError, match="brings its own weights; leave out weights none"):
        cb.load_network(SPEC, "none")


def test_offline_and_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the library itself, told that there is no network."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OSError, match=r"its model.safetensors cannot be had \(.*; check owner, name and commit, and connect"
    ):
        cb.load_network(SPEC)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"needs huggingface_hub .*pip install 'cnnf-brain\[hub\]'"):
        cb.load_network(SPEC)


def test_a_stranger_s_card_names_no_code(published: Path, tmp_path: Path) -> None:
    """The card says which network the weights are of; it must not say which file is to be run."""
    code, ran = tmp_path / "evil.py", tmp_path / "ran"
    code.write_text(f"import pathlib\ndef build(): pathlib.Path({str(ran)!r}).touch()\n")
    path = published / "model.safetensors"
    card = json.dumps({"arch": f"{code}:build"})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt", "card": card})
    with pytest.raises(ValueError, match=r"by its card it is .*evil\.py:build, expected small, alexnet"):
        cb.load_network(SPEC)
    assert not ran.exists()


def test_weights_without_a_card_are_not_made_ready(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"hold no card of a trainer; give the model\.safetensors that training left"):
        cb.hub_folder(tmp_path / "bare.safetensors", tmp_path / "folder", license="mit")
    assert not (tmp_path / "folder").exists()
