"""Weight files and torchvision's published weights -> checked state dicts. Loading never executes code."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain.io import ask_sizes

SUFFIXES = (".safetensors", ".pt", ".pth")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class HeadlessNetworkWarning(UserWarning):
    """The weights hold the convolutions alone: feedback starts from the top feature map."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file, or in a ``.pt``/``.pth`` file read with ``weights_only=True``.

    Half and double precision come back as float32. A FileNotFoundError or ValueError says what is wrong with the file.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"weights {path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
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
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"weights {path}: expected a mapping from names to tensors (a state dict), found {keys}")
    return {name: tensor.float() if tensor.dtype in FLOATS else tensor for name, tensor in state.items()}


def check_state(state: Mapping[str, Tensor], network: nn.Module, source: str) -> None:
    """A ValueError that lists the first few wrong keys, shapes or types and the likely cause, where ``state`` does not fit.

    Floating-point weights must come as such: integers or booleans in their place (a quantised model, a mask) are not cast.
    """
    whole = network.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {expected[k]}"
        for k in expected
        if k in state and tuple(state[k].shape) != expected[k]
    ]
    types = [
        f"{k} is {str(state[k].dtype).removeprefix('torch.')}, expected floating point"
        for k, tensor in whole.items()
        if k in state and tensor.is_floating_point() and state[k].dtype not in FLOATS
    ]
    if not (missing or extra or shapes or types):
        return
    parts = [
        f"{what}: {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        for what, found in (
            ("missing", missing),
            ("not in the network", extra),
            ("other shapes", shapes),
            ("other types", types),
        )
        if found
    ]
    raise ValueError(f"{source} does not fit the network. {'; '.join(parts)}. {likely_cause(missing, extra, shapes, types)}")


def likely_cause(missing: list[str], extra: list[str], shapes: list[str], types: Sequence[str] = ()) -> str:
    """A sentence on why a state dict does not fit."""
    if types and not (missing or extra or shapes):
        return "Likely cause: a quantised model, or masks in place of weights; save the floating-point weights."
    if extra and all(k.startswith("module.") for k in extra):
        return "Likely cause: saved from a DataParallel or DistributedDataParallel wrapper; strip 'module.' from the names."
    if extra and all(k.startswith("_orig_mod.") for k in extra):
        return "Likely cause: saved from a compiled module; strip '_orig_mod.' from the names."
    if extra and {"state_dict", "model", "optimizer"} & set(extra):
        return "Likely cause: a training checkpoint; save its model entry alone."
    if shapes and not missing and not extra:
        return "Likely cause: another number of classes or another width."
    if missing and not extra:
        return "Likely cause: an incomplete file, or the weights of a smaller network."
    return "Likely cause: the weights of another architecture."


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
        warnings.warn(
            f"{weights} holds the convolutions of {arch} alone: the network is headless, and feedback starts from its top "
            "feature map",
            HeadlessNetworkWarning,
            stacklevel=3,
        )
    check_state(state, network, f"weights {weights}")
    network.load_state_dict(dict(state), strict=False, assign=True)
    for name, buffer in network.named_buffers():  # num_batches_tracked of old files
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner).register_buffer(leaf, torch.zeros_like(buffer, device="cpu"))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def fit_classes(network: nn.Sequential, state: Mapping[str, Tensor]) -> None:
    """Give the last fully connected layer (on the meta device) as many outputs as it has in ``state``."""
    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    found = state.get(f"{name}.weight")
    if found is not None and found.dim() == 2 and found.shape[1] == last.in_features:
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
        return torch.hub.load_state_dict_from_url(
            entry.url, map_location="cpu", progress=True, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise OSError(
            f"weights {name} of {arch}: {entry.url} cannot be had ({error}); connect to the network and try again, or give a "
            "file that you have"
        ) from error


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
