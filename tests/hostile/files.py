"""A small valid file of every kind, written by this software where it writes such files, and its reader."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import folders
from torch import nn
from trainer.idx_files import drawn, idx

from cnnf_brain.compare import Comparison
from cnnf_brain.datasets import mnist
from cnnf_brain.datasets.image_batches import ShownImages
from cnnf_brain.datasets.image_index import index_images
from cnnf_brain.gram import read_gram, write_gram
from cnnf_brain.io import write_json
from cnnf_brain.model import zoo
from cnnf_brain.model.weights import read_card, read_weights
from cnnf_brain.recordings import Recordings, load_v4_compact, read_assembly, write_assembly
from cnnf_brain.report import readers
from cnnf_brain.results import claim, write_record
from cnnf_brain.robustness import cells
from cnnf_brain.trainer import checkpoint, evaluation, small
from cnnf_brain.trainer.metrics import Log
from cnnf_brain.trainer.writer import Writer
from cnnf_brain.types import Gram, Images, LayerAt

AT = LayerAt("a")
QUESTION = {"sha256": "a" * 64, "settings": {"arch": "vgg16", "feedback": {"iterations": 2}}, "data": "b" * 64}
SITES = 3


@dataclass(frozen=True)
class Kind:
    """``make`` fills a folder and gives the files to damage; ``read`` takes the folder and the damaged file. ``exact``: with
    checksums, so that what is read is what was written (or None). ``weight``: share of the examples."""

    make: Callable[[Path], list[Path]]
    read: Callable[[Path, Path], object]
    exact: bool = False
    writes: bool = False
    weight: float = 1.0


def pictures(folder: Path, n: int, size: int = 8) -> list[Path]:
    """``n`` noisy PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"picture{i}.png" for i in range(n)]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(file)
    return files


def weights(folder: Path) -> list[Path]:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(4, 3))
    trained = {"feedback": {"iterations": 2, "target": "input", "step": 1.0}, "weights": "none", "title": "a run"}
    card = {"configuration": trained, "arch": "vgg16", "image_size": 32, "validation_accuracy": [0.5, 0.6, 0.7]}
    card |= {"started_from": {"weights": "start.safetensors", "sha256": "c" * 64}, "steps": 3}
    checkpoint.save_weights(folder / "w.safetensors", net, card)
    return [folder / "w.safetensors"]


def read_both(folder: Path, path: Path) -> object:
    read_weights(path)
    return read_card(path)


def torch_weights(folder: Path) -> list[Path]:
    torch.save(nn.Linear(3, 2).state_dict(), folder / "w.pt")
    return [folder / "w.pt"]


def saved_step(folder: Path) -> list[Path]:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "position": {"step": 3, "sums": {}}}
    with Writer(folder) as beside:
        beside.save(3, state)
    return checkpoint.paths(folder)


def step_back(folder: Path, path: Path) -> object:
    return json.dumps(checkpoint.load(path), default=lambda tensor: tensor.tolist())


def finished(folder: Path) -> list[Path]:
    feedback = {"iterations": 1}
    checkpoint.finish(
        folder, zoo.small_net(None, iterations=1), {"title": "t", "configuration": {"feedback": feedback}, "command": "c"}
    )
    return [folder / "card.json"]


def log(folder: Path) -> list[Path]:
    folders.trained(folder)
    return [folder / "log.jsonl"]


def compared(folder: Path) -> list[Path]:
    folders.compared(folder)
    return [folder / name for name in ("summary.json", "run.json", "scores.nc")]


def figured(folder: Path) -> list[Path]:
    folders.figured(folder)
    return [folder / name for name in ("summary.json", "run.json", "table.csv", "figure.svg")]


def trained(folder: Path) -> list[Path]:
    folders.trained(folder)
    return [folder / name for name in ("card.json", "log.jsonl")]


def assembly(folder: Path) -> list[Path]:
    images = pictures(folder / "images", 6)
    responses = np.random.default_rng(0).random((6, SITES, 2))
    return [write_assembly(folder / "a.nc", responses, images, region="V4", subjects=["m"] * SITES)]


def dissimilarities(folder: Path) -> list[Path]:
    names = [path.name for path in pictures(folder, 6)]
    (folder / "stimuli.csv").write_text("\n".join(["image", *names]))
    np.save(folder / "a.npy", 1 - np.eye(6))
    return [folder / "a.npy", folder / "stimuli.csv"]


def session(folder: Path) -> list[Path]:
    from recordings.conftest import write_session

    raw = np.random.default_rng(0).random((SITES, 6, 2))
    write_session(folder, "s", raw, raw.mean(axis=2))
    return sorted(path for path in folder.rglob("*") if path.suffix in (".zip", ".npy"))


def read_session(folder: Path, path: Path) -> object:
    found = load_v4_compact(folder, "s")
    found.images.check()
    return [found.images.read(i) for i in range(len(found.images))] if path.suffix == ".zip" else None


def idx_files(folder: Path) -> list[Path]:
    content = idx(drawn(12, 0)[0])
    (folder / "plain").write_bytes(content)
    (folder / "packed.gz").write_bytes(gzip.compress(content))
    return [folder / "plain", folder / "packed.gz"]


def shards(folder: Path) -> list[Path]:
    for part in ("train", "val"):
        with tarfile.open(folder / f"{part}-0.tar", "w") as tar:
            for number, path in enumerate(pictures(folder / "loose", 4)):
                tar.add(path, f"n0{number % 2}/{part}{number}.png")
    return [folder / "train-0.tar"]


def webdataset_shards(folder: Path) -> list[Path]:
    for part in ("train", "val"):
        with tarfile.open(folder / f"{part}-0.tar", "w") as tar:
            for number, path in enumerate(pictures(folder / "loose", 4)):
                (folder / "cls").write_text(str(number % 2))
                tar.add(path, f"{part}{number}.png")
                tar.add(folder / "cls", f"{part}{number}.cls")
    return [folder / "train-0.tar"]


def read_shards(folder: Path, path: Path) -> object:
    index, _ = index_images(folder)
    return ShownImages(index, 8)[np.arange(len(index)), np.zeros(len(index), bool)]


def image_files(folder: Path) -> list[Path]:
    pixels = Image.open(pictures(folder, 1)[0])
    files = [folder / f"image.{kind}" for kind in ("png", "jpeg", "tiff", "webp", "gif", "bmp")]
    for path in files:
        pixels.save(path)
    return files


def cell(folder: Path) -> list[Path]:
    about = np.array(json.dumps({"identity": {"format": cells.FORMAT}, "weights_sha256": ["d" * 64], "seconds": 1.0}))
    np.savez_compressed(folder / "cell.npz", correct=np.ones((2, 3, 4), bool), about=about)
    return [folder / "cell.npz"]


def read_cell(folder: Path, path: Path) -> object:
    right, about = cells.read_cell(path)
    return right.tolist(), about


def gram(folder: Path) -> list[Path]:
    write_gram(folder / "gram.npz", Gram(AT, np.eye(4), 7))
    return [folder / "gram.npz"]


def cached(folder: Path, path: Path) -> object:
    found = read_gram(AT, path)
    return None if found is None else (found.values.tolist(), found.n_features)


def claimed(folder: Path) -> list[Path]:
    write_record(folder, "compare", QUESTION, {"command": "c", "files": ["a", "b"]})
    return [folder / "run.json"]


def evaluated(folder: Path) -> list[Path]:
    write_json(folder / evaluation.EVALUATION, {**QUESTION, "top1": [0.5], "images": 3})
    return [folder / evaluation.EVALUATION]


KINDS = {
    "weights and card": Kind(weights, read_both, weight=2.5),
    "weights of torch": Kind(torch_weights, lambda _, path: read_weights(path)),
    "checkpoint": Kind(saved_step, step_back, exact=True),
    "card of a run": Kind(finished, lambda folder, _: small.load(folder)[1], weight=0.3),
    "log": Kind(log, lambda _, path: Log(path, 10**9).read(), writes=True, weight=0.5),
    "comparison": Kind(compared, lambda folder, _: Comparison.load(folder), weight=0.5),
    "page of a comparison": Kind(compared, lambda folder, _: readers.read(folder), weight=0.3),
    "page of a figure": Kind(figured, lambda folder, _: readers.read(folder), weight=1.2),
    "page of a training": Kind(trained, lambda folder, _: readers.read(folder), weight=1.2),
    "assembly": Kind(assembly, lambda _, path: read_assembly(path, "V4"), weight=0.7),
    "dissimilarities": Kind(dissimilarities, lambda folder, _: Recordings.read_rdm(folder / "a.npy", "IT"), weight=0.5),
    "V4 session": Kind(session, read_session, exact=True),
    "IDX": Kind(idx_files, lambda _, path: mnist.read_idx(path, 3)),
    "tar shard": Kind(shards, read_shards, weight=0.6),
    "shard of WebDataset": Kind(webdataset_shards, read_shards, weight=0.3),
    "image": Kind(image_files, lambda _, path: Images.of([path]).decode(0), weight=1.5),
    "cell": Kind(cell, read_cell, exact=True),
    "cached features": Kind(gram, cached, exact=True),
    "record": Kind(claimed, lambda folder, _: claim(folder, "compare", QUESTION)),
    "evaluation": Kind(evaluated, lambda folder, _: evaluation.check_evaluation(folder, QUESTION)),
}
