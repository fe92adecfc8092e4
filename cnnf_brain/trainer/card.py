"""The result of a run: weights as safetensors with their card inside, and the card beside as JSON and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cnnf_brain.files import write_json, write_text, write_whole

ACCURACIES = ("validation_accuracy", "validation_top5_accuracy", "test_accuracy")  # shares at each iteration 0..N


def save_weights(path: Path, model: nn.Module, card: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """The state dict of ``model`` in ``dtype`` with ``card`` (JSON values) in the metadata, whole or not at all;
    ``cnnf_brain.model.weights.read_card`` reads it again."""
    state = {
        name: (tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()).contiguous()
        for name, tensor in model.state_dict().items()
    }
    content = safetensors.torch.save(state, {"format": "pt", "card": json.dumps(card)})
    write_whole(path, lambda file: file.write(content))


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """``card.md`` and, last, as the sign that the run is finished, ``card.json``."""
    text = markdown(card)
    write_text(folder / "card.md", text)
    write_json(folder / "card.json", card)


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
