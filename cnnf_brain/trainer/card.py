"""The result of a run: weights as safetensors with their card inside, and the card beside as JSON and Markdown.

``card.json`` also holds the SHA-256 of the file of weights, by which a finished run is checked and, where the file is gone or
damaged, restored from the checkpoint of its last step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cnnf_brain.io import sha256, write_json, write_text, write_whole
from cnnf_brain.model.weights import check_state, read_card, read_weights
from cnnf_brain.results import commit, versions
from cnnf_brain.trainer import checkpoint
from cnnf_brain.trainer.checkpoint import Position
from cnnf_brain.trainer.config import check_same

WEIGHTS = "model.safetensors"
HASH = "weights_sha256"  # of the file WEIGHTS; in card.json alone, since a file cannot hold its own hash
ACCURACIES = ("validation_accuracy", "validation_top5_accuracy", "test_accuracy")  # shares at each iteration 0..N


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
    """Write the weights, then ``card.md`` and, last, as the sign that the run is finished, ``card.json``; its content.

    Parameters
    ----------
    card
        As it stands in the file of weights; ``card.json`` has the SHA-256 of that file besides.
    """
    save_weights(folder / WEIGHTS, model, card, dtype)
    card = {**card, HASH: sha256(folder / WEIGHTS)}
    write_text(folder / "card.md", markdown(card))
    write_json(folder / "card.json", card)
    return card


class LostWeights(ValueError):
    """The weights of a finished run are gone, damaged, or not those that its card speaks of."""


def check_weights(folder: Path, card: dict[str, Any], network: nn.Module) -> None:
    """LostWeights unless ``model.safetensors`` in ``folder`` is whole and the file that ``card`` speaks of.

    Of a card from before the hash was kept: unless the file loads, fits ``network`` and is of the same configuration.
    """
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
    """The card of the finished run in ``folder``, its weights checked or restored from the checkpoint of its last step.

    Parameters
    ----------
    configuration, steps
        What the run is to be. Where the card says how many steps were made, more of them continue the run.
    network
        Makes a network of the run's architecture, of which no weights are used.
    writes
        Whether this process is the one that checks the weights and writes; the others take the card alone.

    Returns
    -------
    dict or None
        None where there is no card, or one of fewer steps.

    Raises
    ------
    LostWeights
        The weights are lost, and no checkpoint of the last step gives them back.
    ValueError
        Another run was finished there, or one of more steps.
    """
    path = folder / "card.json"
    if not path.exists():
        return None
    card: dict[str, Any] = json.loads(path.read_text())
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
            print(f"{lost}: restored from {_restore(folder, card, model, steps, lost)}")
    return card


def _restore(folder: Path, card: dict[str, Any], model: nn.Module, steps: int, lost: LostWeights) -> Path:
    """Write the weights of a finished run again; the checkpoint that had them."""
    advice = f"put the file back, or remove {folder / 'card.json'} to finish the run again"
    try:
        found = checkpoint.newest(folder / "checkpoints")
    except checkpoint.DamagedCheckpoint as error:
        raise LostWeights(f"{lost}, and {error}") from error
    if found is None or Position.of(found[1]).step != steps:
        raise LostWeights(f"{lost}, and {folder / 'checkpoints'} has no checkpoint of the run's last step; {advice}")
    path, state = found
    check_same(state["configuration"], card["configuration"], path)
    model.load_state_dict(state["model"], assign=True)
    inside = {name: value for name, value in card.items() if name != HASH}
    dtype = getattr(torch, card["configuration"].get("dtype", "float32"))
    content = b"".join(serialised(model, inside, dtype))
    if card.get(HASH, hashlib.sha256(content).hexdigest()) != hashlib.sha256(content).hexdigest():
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
    lines += ["", "| | |", "|---|---|"]
    shown = ("title", "command", *ACCURACIES)
    lines += [f"| {name} | {value} |" for name, value in _rows(card) if name not in shown]
    return "\n".join(lines) + "\n"


def _rows(card: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in card.items():
        rows += _rows(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
