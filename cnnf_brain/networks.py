"""What ``--model`` and ``--weights`` name -> a network ready to be shown images."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnf_brain.checks import unknown
from cnnf_brain.images import Preprocessing
from cnnf_brain.model import weights as weight_files
from cnnf_brain.model.feedback import CNNF
from cnnf_brain.model.nets import ARCHITECTURES, from_torchvision, small_net

SMALL = "small"
SHIPPED = {True: "fashion_cnnf.safetensors", False: "fashion_cnn.safetensors"}  # with feedback, without
PUBLISHED = "IMAGENET1K_V1"
FEEDBACK_FLAGS = ("target", "step", "match_norm", "ada_relu", "tolerance")

# Layers that stand for a region where the user names none: those of Brain-Score's own vgg_16, vgg_19 and alexnet entries;
# for the small net its one spatial layer after pooling and its hidden fully connected one.
REGIONS: dict[str, dict[str, str]] = {
    "vgg16": {"V1": "features.16", "V2": "features.16", "V4": "features.16", "IT": "features.23"},
    "alexnet": {"V1": "features.2", "V2": "features.7", "V4": "features.7", "IT": "features.12"},
    SMALL: {"V4": "pool2", "IT": "relu3"},
}


@dataclass(frozen=True)
class Network:
    """A network with what it takes to show it images and to tell it from others.

    ``module`` is in evaluation mode on ``device``; ``regions`` maps regions to layer names where that is known;
    ``weights`` is where they come from, in words; ``headless`` networks have no classifier.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    weights: str
    regions: Mapping[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    headless: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the architecture and all weights."""
        return network_digest(self.module)

    def layer_of(self, region: str) -> str:
        """The layer that stands for ``region``; a ValueError where none is known."""
        if region not in self.regions:
            raise ValueError(
                f"{self.name}: no layer is known for region {region!r}; name one, for instance {region}=features.16@1"
            )
        return self.regions[region]


def load_network(
    spec: str,
    weights: str | None = None,
    *,
    iterations: int = 0,
    feedback: Mapping[str, object] | None = None,
    image_size: int | None = None,
    device: str = "cpu",
) -> Network:
    """The network that ``spec`` names.

    Parameters
    ----------
    spec
        ``small`` (the shipped Fashion-MNIST pair), ``vgg16``, ``alexnet`` or another of torchvision's VGGs (all of these as CNN-F;
        with 0 iterations the CNN), ``torchvision:NAME`` (any network of torchvision), or ``path/to/file.py:function``
        (a function without arguments that returns an nn.Module; its attribute ``preprocessing``, if any, is a
        ``cnnf_brain.images.Preprocessing``).
    weights
        A file, or a published name. By default those shipped (``small``) or ``IMAGENET1K_V1``.
    iterations
        Feedback iterations; networks without feedback take 0 alone.
    feedback
        Settings that override those on the weights' card (target, step, match_norm, ada_relu, tolerance).

    Raises
    ------
    ValueError, FileNotFoundError, OSError
        An unknown name, a file that is missing or does not fit, weights that cannot be downloaded.
    """
    place = check_device(device)
    if spec == SMALL or spec in ARCHITECTURES:
        network = _with_feedback(spec, weights, iterations, dict(feedback or {}), image_size)
    elif spec.startswith("torchvision:") or ".py:" in spec:
        if iterations or feedback:
            raise ValueError(f"{spec}: has no feedback; it runs with 0 iterations alone, and takes no feedback settings")
        make = _torchvision if spec.startswith("torchvision:") else _from_file
        network = make(spec, weights, image_size)
    else:
        known = [SMALL, *ARCHITECTURES, "torchvision:NAME", "path/to/file.py:function"]
        raise unknown("model", spec, known)
    module = network.module.eval().to(place).to(memory_format=torch.channels_last)
    return Network(network.name, module, network.preprocessing, network.weights, network.regions, place, network.headless)


def _with_feedback(
    spec: str, weights: str | None, iterations: int, overrides: dict[str, Any], image_size: int | None
) -> Network:
    unknown_flags = set(overrides) - set(FEEDBACK_FLAGS)
    if unknown_flags:
        raise unknown("feedback setting", sorted(unknown_flags)[0], FEEDBACK_FLAGS)
    source = weights or (shipped_weights(iterations > 0) if spec == SMALL else PUBLISHED)
    card = {} if weight_files.is_published(source) else weight_files.read_card(source)
    on_card = card.get("feedback")
    settings = {k: v for k, v in (on_card if isinstance(on_card, dict) else {}).items() if k in FEEDBACK_FLAGS}
    settings.update(overrides)
    if iterations == 0:
        settings = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", weight_files.HeadlessNetworkWarning)  # said by ``headless``
        if spec == SMALL:
            normalisation = str(card.get("normalisation", "rms"))
            module = small_net(source, normalisation=normalisation, iterations=iterations, **settings)
        else:
            module = from_torchvision(spec, source, iterations=iterations, **settings)
    if spec == SMALL:
        preprocessing = Preprocessing(image_size or 28, (0.5,), (0.5,))
    else:
        preprocessing = Preprocessing(image_size or 224)
    headless = spec != SMALL and not hasattr(module, "classifier")
    kind = "CNN-F" if iterations else "CNN"
    label = weights or ("shipped, Fashion-MNIST" if spec == SMALL else PUBLISHED)
    return Network(f"{spec} {kind}", module, preprocessing, str(label), REGIONS.get(spec, {}), headless=headless)


def _torchvision(spec: str, weights: str | None, image_size: int | None) -> Network:
    from torchvision import models

    arch = spec.removeprefix("torchvision:")
    if arch not in models.list_models(module=models):
        raise unknown("torchvision model", arch, models.list_models(module=models))
    module = models.get_model(arch, weights=None)
    source = weights or PUBLISHED
    published = weight_files.is_published(source)
    state = weight_files.published(arch, source) if published else weight_files.read_weights(source)
    weight_files.check_state(state, module, f"weights {source}")
    module.load_state_dict(state)
    return Network(spec, module, Preprocessing(image_size or 224), source, REGIONS.get(arch, {}))


def _from_file(spec: str, weights: str | None, image_size: int | None) -> Network:
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"model {spec}: no file {path}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    python = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = python  # so that the classes in it can be found again
    try:
        module_spec.loader.exec_module(python)
        made = getattr(python, function)()
    except Exception as error:
        raise ValueError(f"model {spec}: calling {function}() in {path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"model {spec}: {function}() returned a {type(made).__name__}, expected an nn.Module")
    if weights is not None:
        state = weight_files.read_weights(weights)
        weight_files.check_state(state, made, f"weights {weights}")
        made.load_state_dict(state)
    preprocessing = getattr(made, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = Preprocessing(image_size or 224)
    elif image_size is not None:
        preprocessing = Preprocessing(image_size, preprocessing.mean, preprocessing.std)
    iterations = made.iterations if isinstance(made, CNNF) else 0
    name = f"{path.name}:{function}" + (f" ({iterations} iterations)" if iterations else "")
    return Network(name, made, preprocessing, weights or "as built", getattr(made, "regions", {}))


def network_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all tensors, the architecture, and the sources of classes not torch's own."""
    whole = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for kind in sorted({type(m) for m in module.modules()}, key=repr):
        if kind.__module__.split(".")[0] not in ("torch", "torchvision", "cnnf_brain"):
            source = inspect.getsourcefile(kind)
            whole.update(Path(source).read_bytes() if source and Path(source).is_file() else repr(kind).encode())
    return whole.hexdigest()


def shipped_weights(with_feedback: bool) -> str:
    """Path of the shipped small network's weights; a FileNotFoundError where the installation lacks them."""
    path = resources.files("cnnf_brain") / "pretrained" / SHIPPED[with_feedback]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the shipped weights are missing; install cnnf-brain again, or give --weights")
    return str(path)


def check_device(device: str) -> torch.device:
    """The torch device; a ValueError where this machine has none such."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return place
