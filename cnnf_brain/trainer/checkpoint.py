"""The files of a run: its checkpoints, and the weights that it leaves with their card. Reading them runs no code.

A checkpoint is one safetensors file. Its tensors are named by their place in the saved state (``optimizer/state/0/exp_avg``); its
metadata holds the rest of the state as JSON, and a SHA-256 over both, which tells where a disk has altered it since. Several ranks
write a file each, with a share of the weights; rank 0 writes last, and without its file the others are nothing.

The card is in the metadata of the weights, and beside them as JSON and Markdown. ``card.json`` also holds the SHA-256 of the file
of weights: by it a finished run is checked and, where the file is gone or damaged, restored from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cnnf_brain.io import open_file, read_bytes, read_json, reading, sha256, write_json, write_text, write_whole
from cnnf_brain.model.weights import WEIGHTS, check_state, read_card, read_weights
from cnnf_brain.results import commit, versions
from cnnf_brain.trainer.config import check_same

FORMATS = ("cnnf-brain checkpoint 1", "cnnf-brain checkpoint 2")  # of one file, and of a file of each rank
PATTERN = "checkpoint-*.safetensors"
HASH = "weights_sha256"  # of the file WEIGHTS; in card.json alone, since a file cannot hold its own hash
DATASETS = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist"}  # at Hugging Face
HUB_TEXT = """A network of Huang et al. (NeurIPS 2020), for research on feedback and on neural predictivity.

    import cnnf_brain
    model = cnnf_brain.load_network("hf:OWNER/NAME@COMMIT")"""
ACCURACIES = ("validation_accuracy", "validation_top5_accuracy", "test_accuracy")  # shares at each iteration 0..N


@dataclass
class Position:
    """Where a run is: all that changes in it beside the states of the network and the optimizer.

    ``step``, ``seconds``: steps done and seconds of training. ``sums``, ``images``, ``norms``: since the last line of the log, each
    loss term at each iteration (N+1,), summed over the images of all ranks; the number of these images; the norm of each step's
    gradient. ``validation``, ``best``: what validation said last and at best, with the step. ``bad``: path -> reason of the damaged
    training images met so far.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    images: int = 0
    norms: list[float] = field(default_factory=list)
    validation: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    bad: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any], n_images: int = sys.maxsize) -> Position:
        """The position in a checkpoint's state. Older ones of images in memory (``n_images``) count epochs and batches."""
        if "position" in state:
            return cls(**state["position"])
        old = state["progress"]
        images = min(old["batch"] * state["configuration"].get("batch_size", 1), n_images)
        judged = None if old["batch"] else {"step": old["step"]}  # the last step of an epoch was saved with its validation
        return cls(old["step"], old["seconds"], old["sums"], images, validation=judged)

    @property
    def judged(self) -> bool:
        """Whether the weights of now are validated."""
        return self.validation is not None and self.validation["step"] == self.step

    def means(self) -> dict[str, list[float]]:
        """Each loss term at each iteration, the mean over the images since the last line of the log."""
        return {term: (values / max(self.images, 1)).tolist() for term, values in self.sums.items()}


class DamagedCheckpoint(ValueError):
    """The file is not a whole checkpoint of this format."""


class LostWeights(ValueError):
    """The weights of a finished run are gone, damaged, or not those that its card speaks of."""


def apart(state: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """All of ``state`` but its tensors as JSON, and the tensors by their place in it, not copied.

    A state consists of dicts (keys: strings or integers), lists and tuples of tensors, numbers, strings, booleans and None, as
    state dicts do; a TypeError for anything else, which would need code to load.
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_flatten(state, "", tensors)), tensors


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which nothing else changes; safetensors takes neither views nor tensors that share memory."""
    layout = torch.contiguous_format
    return {name: value.to("cpu", copy=True, memory_format=layout) for name, value in tensors.items()}


def write(path: Path, rest: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Write ``copied`` tensors and JSON to ``path``, whole or not at all; the SHA-256 over them."""
    digest = _digest(rest, tensors)
    content = safetensors.torch.save(tensors, {**metadata, "state": rest, "sha256": digest})
    write_whole(path, lambda file: file.write(content))
    return digest


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file; DamagedCheckpoint where it is truncated, altered or of another kind."""
    open_file(path).close()
    with reading(path, "a whole safetensors file", "it was not used", DamagedCheckpoint):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") not in FORMATS:
            known = " or ".join(map(repr, FORMATS))
            raise DamagedCheckpoint(f"{path} is not of the format {known} but {metadata.get('format')!r}")
        if metadata.get("sha256") != _digest(metadata.get("state", ""), tensors):
            raise DamagedCheckpoint(f"{path} is damaged: its content does not have the checksum written with it")
    return metadata, tensors


def load(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, tensors on the CPU; DamagedCheckpoint where its file, or a share, is damaged or missing."""
    metadata, tensors = read(path)
    for part in _shares(path, metadata):
        tensors |= read(part)[1]
    with reading(path, "a whole checkpoint", "a share of it may be missing; it was not used", DamagedCheckpoint):
        state: dict[str, Any] = _restored(json.loads(metadata["state"]), tensors)
    return state


def paths(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest (by step) first."""
    return sorted(folder.glob(PATTERN), reverse=True)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint with its state; None where there are no checkpoints.

    A damaged one is passed over with a RuntimeWarning. Where all are damaged, a DamagedCheckpoint is raised: a silent fresh start
    would throw a run away.
    """
    candidates = paths(folder)
    for path in candidates:
        try:
            return path, load(path)
        except DamagedCheckpoint as error:
            warnings.warn(f"{error}; trying the one before", RuntimeWarning, stacklevel=2)
    if candidates:
        raise DamagedCheckpoint(f"all {len(candidates)} checkpoints in {folder} are damaged; remove them to start anew")
    return None


def share_name(step: int, mark: str, rank: int) -> str:
    """The file of a ``rank`` above 0; ``mark`` is drawn for each checkpoint, so that no share is taken for one of another."""
    return f"share-{step:09d}-{mark}-{rank}.safetensors"


def _shares(path: Path, metadata: dict[str, str]) -> list[Path]:
    """The files of the ranks above 0 that belong to the checkpoint ``path`` with that metadata."""
    whose = [path.stem.partition("-")[2], metadata.get("mark")]
    return [share for share in sorted(path.parent.glob("share-*")) if share.name.split("-")[1:3] == whose]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and the shares that belong to none."""
    for old in paths(folder)[keep:]:
        old.unlink()
    left = set(folder.glob("share-*"))
    for path in paths(folder) if left else ():
        with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as file:
            left -= set(_shares(path, file.metadata() or {}))
    for share in left:
        share.unlink()


def clean(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder`` (no other may be writing there)."""
    for left in (*folder.glob(f".{PATTERN}*"), *folder.glob(".share-*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    prune(folder, sys.maxsize)


def _flatten(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON; each tensor goes to ``tensors`` and leaves its name. Containers are tagged, as JSON
    alone would make lists of tuples and strings of integer keys."""
    if isinstance(value, Tensor):
        if place in tensors:
            raise TypeError(f"checkpoint: two tensors have the place {place}")
        tensors[place] = value.detach()
        return {"tensor": place}
    if isinstance(value, dict):
        if not all(type(key) in (str, int) for key in value):
            raise TypeError(f"checkpoint: the keys of {place or 'the state'} must be strings or integers")
        return {"dict": [[k, _flatten(v, f"{place}/{k}".lstrip("/"), tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"checkpoint: {place} is a {type(value).__name__}; only tensors, numbers, strings, booleans, None "
        "and dicts, lists and tuples of them are saved, so that loading never runs code"
    )


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restored(item, tensors) for key, item in content}
    items = [_restored(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _digest(rest: str, tensors: dict[str, Tensor]) -> str:
    whole = hashlib.sha256(rest.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def about(command: str, configuration: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a run is, as its card and ``config.json`` hold it: command, configuration, ``more``, commit, versions."""
    return {"command": command, "configuration": configuration, **more, "commit": commit(), "versions": versions()}


def save_weights(path: Path, model: nn.Module, card: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """The state dict of ``model`` in ``dtype`` with ``card`` (JSON values) in the metadata, whole or not at all;
    ``cnnf_brain.model.weights.read_card`` reads it again."""
    write_whole(path, lambda file: [file.write(part) for part in serialised(model, card, dtype)])


def serialised(model: nn.Module, card: dict[str, Any], dtype: torch.dtype) -> tuple[bytes, memoryview]:
    """The two parts of a safetensors file, header and tensors: the same bytes for the same weights and card.

    safetensors writes the entries of the metadata in an order that changes from call to call; here they are sorted.
    """
    state = {
        name: (tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()).contiguous()
        for name, tensor in model.state_dict().items()
    }
    content = memoryview(safetensors.torch.save(state, {"format": "pt", "card": json.dumps(card)}))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:end]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, content[end:]


def finish(folder: Path, model: nn.Module, card: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Write the weights with ``card``, then ``card.md`` and, last, as the sign that the run is finished, ``card.json`` with the
    SHA-256 of the weights besides; its content."""
    save_weights(folder / WEIGHTS, model, card, dtype)
    card = {**card, HASH: sha256(folder / WEIGHTS)}
    write_text(folder / "card.md", markdown(card))
    write_json(folder / "card.json", card)
    return card


def check_weights(folder: Path, card: dict[str, Any], network: nn.Module) -> None:
    """LostWeights unless ``model.safetensors`` in ``folder`` is whole and the file that ``card`` speaks of: by its hash, or, on
    older cards without one, where it loads, fits ``network`` and is of the same configuration."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise LostWeights(f"{path} is gone")
    if HASH in card:
        found = sha256(path)
        if found != card[HASH]:
            raise LostWeights(f"{path} is damaged or was replaced (its SHA-256 is {found}, on the card {card[HASH]})")
        return
    try:
        check_state(read_weights(path), network, f"weights {path}")
        inside = read_card(path).content
    except ValueError as error:
        raise LostWeights(str(error)) from error
    if inside.get("configuration") != card["configuration"]:
        raise LostWeights(f"{path} holds the weights of another run than the card beside it")


def finished(
    folder: Path, configuration: dict[str, Any], steps: int, network: Callable[[], nn.Module], *, writes: bool = True
) -> dict[str, Any] | None:
    """The card of the finished run in ``folder``, its weights checked or restored from the checkpoint of its last step; None where
    there is no card, or one of fewer steps than ``steps``, which continue the run.

    ``network`` makes a network of the run's architecture. Only the process that ``writes`` checks the weights. LostWeights where no
    checkpoint gives them back; a ValueError where another run was finished there, or one of more steps.
    """
    path = folder / "card.json"
    if not path.exists():
        return None
    card = read_run_card(path)
    check_same(card["configuration"], configuration, path)
    made = card.get("steps", steps)
    if made > steps:
        raise ValueError(f"{path} is of {made} steps, more than the {steps} asked for; choose another output folder")
    if made < steps:
        return None
    if writes:
        with torch.device("meta"):
            model = network()
        try:
            check_weights(folder, card, model)
            print(f"already finished: {path}")
        except LostWeights as lost:
            print(f"{lost}: restored from {_write_again(folder, card, model, steps, lost)}")
    return card


def read_run_card(path: Path) -> dict[str, Any]:
    """The content of ``card.json``; a ValueError where it is damaged."""
    advice = "remove it, and the same command finishes the run again"
    with reading(path, "the card of a run", advice):
        card = read_json(path, advice)
        configuration, steps = card["configuration"], card.get("steps", 0)
        if not isinstance(configuration, dict) or not isinstance(steps, int):
            raise TypeError("its configuration or its steps are of another kind")
    return card


def _write_again(folder: Path, card: dict[str, Any], model: nn.Module, steps: int, lost: LostWeights) -> Path:
    """Write the weights of a finished run again; the checkpoint that had them."""
    advice = f"put the file back, or remove {folder / 'card.json'} to finish the run again"
    try:
        found = newest(folder / "checkpoints")
    except DamagedCheckpoint as error:
        raise LostWeights(f"{lost}, and {error}") from error
    if found is None or Position.of(found[1]).step != steps:
        raise LostWeights(f"{lost}, and {folder / 'checkpoints'} has no checkpoint of the run's last step; {advice}")
    path, state = found
    check_same(state["configuration"], card["configuration"], path)
    model.load_state_dict(state.get("average", state["model"]), assign=True)
    inside = {name: value for name, value in card.items() if name != HASH}
    dtype = getattr(torch, card["configuration"].get("dtype", "float32"))
    digest = hashlib.sha256(b"".join(serialised(model, inside, dtype))).hexdigest()
    if card.get(HASH, digest) != digest:
        raise LostWeights(f"{lost}, and the weights in {path} are not those that the card speaks of; {advice}")
    finish(folder, model, inside, dtype)
    return path


def markdown(card: dict[str, Any]) -> str:
    """The card as tables: accuracy at every iteration, then everything else."""
    shares = [name for name in ACCURACIES if name in card]
    lines = [f"# {card['title']}", "", f"    {card['command']}", ""]
    lines += [f"| iteration | {' | '.join(name.replace('_', ' ') for name in shares)} |", "|---:" * (1 + len(shares)) + "|"]
    for t, row in enumerate(zip(*(card[name] for name in shares), strict=True)):
        lines.append(f"| {t} | {' | '.join(f'{100 * share:.2f} %' for share in row)} |")
    shown = ("title", "command", *ACCURACIES)
    rows = _rows({name: value for name, value in card.items() if name not in shown})
    return "\n".join([*lines, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def _rows(card: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in card.items():
        rows += _rows(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def hub_folder(weights: str | Path, folder: str | Path, license: str) -> Path:
    """A folder to upload to Hugging Face, from where ``load_network`` takes it: ``model.safetensors``, and ``README.md``, its card.

    ``weights``: a file that a trainer of this package wrote, with its card inside; else a ValueError. ``license``: theirs, in
    Hugging Face's words (``"mit"``, ``"cc-by-4.0"``).

    Examples
    --------
    >>> import tempfile
    >>> from cnnf_brain.model.zoo import shipped_weights
    >>> sorted(path.name for path in hub_folder(shipped_weights(True), tempfile.mkdtemp(), license="mit").iterdir())
    ['README.md', 'model.safetensors']
    """
    card, folder = read_card(weights), Path(folder)
    if card.arch is None:
        raise ValueError(f"weights {weights} hold no card of a trainer; give the {WEIGHTS} that training left")
    content, kind = dict(card.content), "image-classification"
    head: dict[str, Any] = {"license": license, "library_name": "cnnf-brain", "pipeline_tag": kind, "metrics": ["accuracy"]}
    dataset = DATASETS.get(content.get("configuration", {}).get("dataset", ""))
    if dataset and "test_accuracy" in content:
        top1 = [{"type": "accuracy", "name": f"iteration {t}", "value": v} for t, v in enumerate(content["test_accuracy"])]
        result = {"task": {"type": kind}, "dataset": {"type": dataset, "name": dataset}, "metrics": top1}
        head |= {"datasets": [dataset], "model-index": [{"name": content["title"], "results": [result]}]}
    front = "".join(f"{name}: {json.dumps(value)}\n" for name, value in head.items())  # JSON is YAML
    title, _, tables = markdown(content).partition("\n\n")
    write_whole(folder / WEIGHTS, lambda file: file.write(read_bytes(weights)))
    write_text(folder / "README.md", f"---\n{front}---\n\n{title}\n\n{HUB_TEXT}\n\n{tables}")
    return folder
