"""Weight files, here or at Hugging Face, the cards inside them, torchvision's weights -> checked records; no code is run."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain.checks import in_short
from cnnf_brain.images import Preprocessing
from cnnf_brain.io import ask_sizes, open_file, reading
from cnnf_brain.model import settings

SUFFIXES = (".safetensors", ".pt", ".pth")
# The feedback's settings besides the number of iterations, as CNNF takes them and as cards hold them.
SETTINGS = tuple(name for name in settings.SETTINGS if name != "iterations")
SMALL = "small"
HUB = "hf:"  # before a repository of Hugging Face
WEIGHTS = "model.safetensors"  # the file of weights in such a repository, and in a run's folder
HEADS = ("torchvision", "linear")  # classifiers of torchvision's networks, see zoo.from_torchvision
KINDS = {"arch": str, "iterations": int, "normalisation": str, "image_size": int, "resize": int}  # of a card's entries
KINDS |= {"head": str, "started_from": str, "started_sha256": str}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MISSING, EXTRA, SHAPES, TYPES = "missing", "not in the network", "other shapes", "other types"  # how a state dict can misfit


class HeadlessNetworkWarning(UserWarning):
    """The weights hold the convolutions alone: feedback starts from the top feature map."""


def existing(path: str | Path) -> Path:
    """The path of a regular file that is there; else a FileNotFoundError, or another OSError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"weights {path}: no such file")
    open_file(path).close()
    return path


@dataclass(frozen=True)
class Card:
    """What the trainers wrote about a network, in the form that loading needs; empty where a file has no card.

    ``arch``: ``small``, or torchvision's name. ``iterations``: as trained, 0 for a CNN. ``feedback``: the other settings, of a
    CNN-F alone. ``normalisation``: of the small net. ``head``: of torchvision's networks. ``image_size``, ``resize``,
    ``mean``, ``std``: see ``images.Preprocessing``; older cards lack the last two. ``started_from``: a published name, ``none``
    (random weights) or a file, with ``started_sha256``. ``top1``: validation accuracy (shares) at iterations 0 to N. ``content``:
    all of it.
    """

    arch: str | None = None
    iterations: int | None = None
    feedback: Mapping[str, Any] = field(default_factory=dict)
    normalisation: str | None = None
    head: str = HEADS[0]
    image_size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    started_from: str | None = None
    started_sha256: str | None = None
    top1: tuple[float, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Card:
        """The record of a card as ``trainer.checkpoint.save_weights`` writes it."""
        if not content:
            return cls()
        configuration = content.get("configuration", {})
        trained = configuration.get("feedback", {})
        merged = {**trained, **content.get("feedback", {})}
        start = content.get("started_from", {})
        return cls(
            arch=content.get("arch", SMALL if "dataset" in configuration else None),
            iterations=merged.get("iterations"),
            feedback={name: merged[name] for name in SETTINGS if name in merged} if merged.get("iterations") else {},
            normalisation=trained.get("normalisation"),
            head=configuration.get("head", HEADS[0]),
            image_size=content.get("image_size"),
            resize=content.get("resize"),
            mean=tuple(content.get("mean", ())),
            std=tuple(content.get("std", ())),
            started_from=start.get("weights"),
            started_sha256=start.get("sha256"),
            top1=tuple(content.get("validation_accuracy", ())),
            content=content,
        )


def read_card(path: str | Path) -> Card:
    """The card in a safetensors file of the trainers; an empty card where the file carries none.

    Cards name the file in ``started_from`` relative to the folder of ``path``. A FileNotFoundError where ``path`` is not there, a
    ValueError for a damaged file, or a card that is none.
    """
    path = existing(path)
    if path.suffix != ".safetensors":
        return Card()
    from safetensors import safe_open

    with reading(path, "a .safetensors file", "it is damaged, or none; get it again"), safe_open(path, "pt") as file:
        content = json.loads((file.metadata() or {}).get("card", "{}"))
    with reading(path, "weights with a card of the form that the trainers write", "leave the card out, or mend it"):
        card = Card.of(content)
        _check_card(card)
        return replace(card, started_from=_found(card, path))


def _check_card(card: Card) -> None:
    """An error where an entry is of another kind than the trainers write."""
    for name, kind in KINDS.items():
        value = getattr(card, name)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
    if not all(isinstance(share, int | float) for share in card.top1):
        raise ValueError(f"validation_accuracy is {list(card.top1)}, expected numbers")
    settings.FeedbackSettings(**{"iterations": card.iterations or 0, **card.feedback})
    units = {"mean": card.mean, "std": card.std} if card.mean or card.std else {}
    Preprocessing(card.image_size or 1, resize=card.resize, **units)


def _found(card: Card, path: Path) -> str | None:
    """``started_from`` of the card in the file ``path`` as a path from the working directory, absolute where ``path`` is."""
    named = card.started_from
    if named is None or not Path(named).suffix:  # random weights, or a published name
        return named
    beside = os.path.normpath(path.resolve().parent / named)
    return beside if path.is_absolute() else os.path.relpath(beside)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in a ``.pt``/``.pth`` file read with ``weights_only=True``.

    Half and double precision come back as float32. A FileNotFoundError or ValueError says what is wrong with the file.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"weights {path}: expected a file that ends in {', '.join(SUFFIXES)}")
    existing(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights {path}: holds more than tensors, or is damaged, and was not loaded, since loading such a file "
            f"could run code ({str(error).splitlines()[0]}); save the state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # safetensors and torch raise their own kinds for damaged files
        raise ValueError(f"weights {path}: damaged or not a {path.suffix} file ({error}); get it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"weights {path}: expected a mapping from names to tensors (a state dict), found {keys}")
    for name, tensor in state.items():
        if why := _unusable(tensor):
            raise ValueError(f"weights {path}: {name} {why}")
    return {name: tensor.float() if tensor.dtype in FLOATS else tensor for name, tensor in state.items()}


def _unusable(tensor: Tensor) -> str:
    """Why a tensor of a file can be no network's, whatever its shape; empty where it can."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is not dense ({tensor.layout}); save it with to_dense()"
    if tensor.is_meta:
        return "is on the meta device, without values; save the weights with their values"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"claims the shape {tuple(tensor.shape)} over fewer values in the file; save it with contiguous()"
    if tensor.dtype in FLOATS and not tensor.isfinite().all():
        return "is not finite (NaN or infinity): its training has diverged, or the file is damaged"
    return ""


def check_state(state: Mapping[str, Tensor], network: nn.Module, source: str) -> None:
    """A ValueError that lists the first few wrong keys, shapes or types and the likely cause, where ``state`` does not fit.

    Floating-point weights must come as such: integers or booleans in their place (a quantised model, a mask) are not cast.
    """
    found = {what: names for what, names in misfits(state, network.state_dict()).items() if names}
    if found:
        more = {what: f" and {len(names) - 3} more" if len(names) > 3 else "" for what, names in found.items()}
        listed = [f"{what}: {', '.join(names[:3])}{more[what]}" for what, names in found.items()]
        raise ValueError(f"{source} does not fit the network. {'; '.join(listed)}. Likely cause: {likely_cause(found)}")


def misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """By kind the names in which two state dicts differ."""
    both = [(name, state[name], tensor) for name, tensor in expected.items() if name in state]
    return {
        MISSING: [name for name in expected if name not in state and not name.endswith("num_batches_tracked")],
        EXTRA: [name for name in state if name not in expected],
        SHAPES: [f"{name} is {tuple(a.shape)}, expected {tuple(b.shape)}" for name, a, b in both if a.shape != b.shape],
        TYPES: [
            f"{name} is {str(a.dtype).removeprefix('torch.')}, expected floating point"
            for name, a, b in both
            if b.is_floating_point() and a.dtype not in FLOATS
        ],
    }


def likely_cause(found: Mapping[str, list[str]]) -> str:
    """Why a state dict does not fit, from the kinds of misfits that were found."""
    kinds, extra = set(found), set(found.get(EXTRA, ()))
    wrappers = {name.partition(".")[0] for name in extra}
    if kinds == {TYPES}:
        return "a quantised model, or masks in place of weights; save the floating-point weights."
    if wrappers == {"module"}:
        return "saved from a DataParallel or DistributedDataParallel wrapper; strip 'module.' from the names."
    if wrappers == {"_orig_mod"}:
        return "saved from a compiled module; strip '_orig_mod.' from the names."
    if extra & {"state_dict", "model", "optimizer"}:
        return "a training checkpoint; save its model entry alone."
    if kinds <= {SHAPES, TYPES}:
        return "another number of classes or another width."
    if not extra:
        return "an incomplete file, or the weights of a smaller network."
    return "the weights of another architecture."


def from_hub(spec: str) -> str:
    """The file of weights of ``hf:OWNER/NAME@COMMIT`` (``trainer.checkpoint.hub_folder`` makes such a repository), from Hugging
    Face's cache or downloaded once.

    A ValueError without a commit: a branch or a tag may name other weights tomorrow. An ImportError without huggingface_hub. An
    OSError where the file cannot be had.
    """
    match = re.fullmatch(HUB + r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", spec)
    if match is None:
        raise ValueError(
            f"model {spec!r}: expected {HUB}OWNER/NAME@COMMIT, with all 40 digits of a commit, so that results say what was run; "
            "the model's page lists its commits under 'Files and versions'"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f"model {spec} needs huggingface_hub ({error}): pip install 'cnnf-brain[hub]'") from error
    try:
        return str(hf_hub_download(match[1], WEIGHTS, revision=match[2]))
    except Exception as error:  # of several libraries, and not all of one kind
        todo = "check owner, name and commit, and connect to the network"
        raise OSError(f"model {spec}: its {WEIGHTS} cannot be had ({in_short(error)}); {todo}") from error


def read_state(weights: str | Path, arch: str) -> dict[str, Tensor]:
    """The state dict of a path, or of a torchvision weights name (``IMAGENET1K_V1``), which is downloaded once and checked
    against the hash in its file name."""
    return published(arch, str(weights)) if is_published(weights) else read_weights(weights)


def load_into(network: nn.Sequential, weights: str | Path, arch: str, *, any_classes: bool = False) -> nn.Sequential:
    """``network`` (built on the meta device) with the weights of ``weights``; headless where these are the convolutions alone.

    ``weights``: see ``read_state``. ``any_classes``: the last layer takes the number of classes that they have.
    """
    state = read_state(weights, arch)
    if any_classes:
        fit_classes(network, state)
    features = {k for k in network.state_dict() if k.startswith("features.") and not k.endswith("num_batches_tracked")}
    if features and features <= set(state) and not any(k.startswith("classifier.") for k in state):
        network = nn.Sequential(network.get_submodule("features"))
        network._modules = {"features": network._modules["0"]}
        told = "the network is headless, and feedback starts from its top feature map"
        warnings.warn(f"{weights} holds the convolutions of {arch} alone: {told}", HeadlessNetworkWarning, stacklevel=3)
    check_state(state, network, f"weights {weights}")
    network.load_state_dict(dict(state), strict=False, assign=True)
    for name, buffer in network.named_buffers():  # num_batches_tracked of old files
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner).register_buffer(leaf, torch.zeros_like(buffer, device="cpu"))
    return network.requires_grad_(True)


def fit_classes(network: nn.Sequential, state: Mapping[str, Tensor]) -> None:
    """Give the last fully connected layer (on the meta device) as many outputs as it has in ``state``."""
    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    found = state.get(f"{name}.weight")
    if found is not None and found.dim() == 2 and len(found) and found.shape[1] == last.in_features:
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, nn.Linear(last.in_features, len(found), device="meta"))


def is_published(weights: str | Path) -> bool:
    """Whether ``weights`` is the name of published weights rather than a file."""
    return isinstance(weights, str) and Path(weights).suffix == "" and weights.upper() == weights


def published(arch: str, name: str) -> dict[str, Tensor]:
    """torchvision's published weights ``name`` of ``arch``, from torch's cache or downloaded (hash checked)."""
    entry = published_entry(arch, name)
    if not published_file(arch, name).is_file():
        print(f"downloading {entry.url} ({entry.meta.get('_file_size', '?')} MiB)", file=sys.stderr)
    try:
        state = torch.hub.load_state_dict_from_url(entry.url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        todo = "connect to the network and try again, or give a file that you have"
        raise OSError(f"weights {name} of {arch}: {entry.url} cannot be had ({error}); {todo}") from error
    # torchvision fills a classifier that these weights lack with NaN
    return {key: value for key, value in state.items() if not value.isnan().all()} if lacks_classifier(arch, name) else state


def lacks_classifier(arch: str, name: str) -> bool:
    """Whether torchvision publishes the convolutions alone under ``name`` (``IMAGENET1K_FEATURES``), by the accuracy it states."""
    metrics = published_entry(arch, name).meta.get("_metrics", {})
    return any(math.isnan(value) for found in metrics.values() for value in found.values())


def units(arch: str, weights: str | Path | None, card: Card) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images, scaled to [0, 1], that weights of torchvision's ``arch`` take.

    Those that torchvision states for published weights, else those of the card, else ImageNet's.
    """
    if weights is not None and is_published(weights):
        trained = published_entry(arch, str(weights)).transforms()
        return tuple(trained.mean), tuple(trained.std)
    return card.mean or Preprocessing.mean, card.std or Preprocessing.std


def published_entry(arch: str, name: str) -> Any:
    """torchvision's entry (url, meta) of the weights ``name``; a ValueError lists those that there are."""
    from torchvision import models

    known = models.get_model_weights(arch)
    if name not in known.__members__:
        raise ValueError(f"weights {name!r} of {arch}: torchvision publishes {', '.join(known.__members__)}; or give a path")
    return known[name]


def published_file(arch: str, name: str) -> Path:
    """Where torch's cache holds the published weights once downloaded."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(published_entry(arch, name).url).name)


def published_available(arch: str, name: str) -> tuple[bool, str]:
    """Whether the published weights are in torch's cache or can be downloaded, and why (with the size), in about 2 s."""
    what, path = f"{arch} weights {name}", published_file(arch, name)
    if path.is_file():
        return True, f"{what} are in the cache"
    sizes, failures = ask_sizes([published_entry(arch, name).url])
    if failures:
        return False, f"{what} are not in the cache and cannot be downloaded ({failures[0]})"
    return True, f"{what} can be downloaded ({'size not stated' if sizes[0] is None else f'{sizes[0] / 1e6:.0f} MB'})"
