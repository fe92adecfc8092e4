"""What ``--model`` and ``--weights`` name -> a network ready to be shown images."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.checks import unknown
from cnnf_brain.images import Preprocessing
from cnnf_brain.model import weights as weight_files
from cnnf_brain.model.feedback import CNNF
from cnnf_brain.model.nets import ARCHITECTURES, from_torchvision, small_net

SMALL = "small"
SHIPPED = {True: "fashion_cnnf.safetensors", False: "fashion_cnn.safetensors"}  # with feedback, without
PUBLISHED = "IMAGENET1K_V1"
FEEDBACK_FLAGS = {  # setting of the feedback -> flag of the command lines
    "target": "target",
    "step": "step_size",
    "match_norm": "match_norm",
    "match_layers": "match_layers",
    "ada_relu": "ada_relu",
}
FEEDBACK = (*FEEDBACK_FLAGS, "tolerance")

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
    ``weights`` is where they come from, in words; ``headless`` networks have no classifier; ``code`` is what of the
    user's own code made the network.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    weights: str
    regions: Mapping[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    headless: bool = False
    code: bytes = field(default=b"", repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the architecture, all weights and the code that is not of this package or torch."""
        return hashlib.sha256(network_digest(self.module).encode() + self.code).hexdigest()

    @property
    def iterations(self) -> int:
        """Feedback iterations that it runs; 0 for a network without feedback."""
        return self.module.iterations if isinstance(self.module, CNNF) else 0

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
        ``cnnf_brain.images.Preprocessing``, and its attribute ``regions`` maps regions to layer names).
    weights
        A file, or a published name. By default those shipped (``small``) or ``IMAGENET1K_V1``.
    iterations
        Feedback iterations; networks without feedback take 0 alone.
    feedback
        Settings that override those on the weights' card (target, step, match_norm, match_layers, ada_relu, tolerance).

    Raises
    ------
    ValueError, OSError
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
    return replace(network, module=module, device=place)


def given_feedback(flags: object) -> dict[str, Any]:
    """The settings of the feedback that ``flags`` (attributes named as the command lines' flags) holds; None is not given."""
    found = {setting: getattr(flags, flag) for setting, flag in FEEDBACK_FLAGS.items()}
    return {setting: value for setting, value in found.items() if value is not None}


def _with_feedback(
    spec: str, weights: str | None, iterations: int, overrides: dict[str, Any], image_size: int | None
) -> Network:
    unknown_flags = set(overrides) - set(FEEDBACK)
    if unknown_flags:
        raise unknown("feedback setting", sorted(unknown_flags)[0], FEEDBACK)
    source = weights or (shipped_weights(iterations > 0) if spec == SMALL else PUBLISHED)
    card = {} if weight_files.is_published(source) else weight_files.read_card(source)
    on_card = card.get("feedback")
    settings = {k: v for k, v in (on_card if isinstance(on_card, dict) else {}).items() if k in FEEDBACK}
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
    known = models.list_models(module=models)
    if arch not in known:
        raise unknown("torchvision model", arch, known)
    source = weights or PUBLISHED
    published = weight_files.is_published(source)
    entry = weight_files.published_entry(arch, source) if published else next(iter(models.get_model_weights(arch)))
    # These two rescale their input inside: so it is set wherever torchvision loads its weights into them.
    extra = {"transform_input": True, "init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    module = models.get_model(arch, weights=None, **extra)
    _load(module, weight_files.published(arch, source) if published else weight_files.read_weights(source), source)
    as_trained = entry.transforms()
    preprocessing = Preprocessing(image_size or as_trained.crop_size[0], tuple(as_trained.mean), tuple(as_trained.std))
    return Network(spec, module, preprocessing, source, REGIONS.get(arch, {}))


def _from_file(spec: str, weights: str | None, image_size: int | None) -> Network:
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"model {spec}: no file {path}")
    made = _call(path, function, spec)
    if not isinstance(made, nn.Module):
        raise ValueError(f"model {spec}: {function}() returned a {type(made).__name__}, expected an nn.Module")
    if weights is not None:
        _load(made, weight_files.read_weights(weights), weights)
    preprocessing = getattr(made, "preprocessing", Preprocessing(224))
    if not isinstance(preprocessing, Preprocessing):
        raise ValueError(f"model {spec}: its preprocessing is a {type(preprocessing).__name__}, expected a Preprocessing")
    if image_size is not None:
        preprocessing = replace(preprocessing, size=image_size)
    regions = getattr(made, "regions", {})
    if not isinstance(regions, Mapping):
        raise ValueError(f"model {spec}: its regions are a {type(regions).__name__}, expected a dict {{region: layer}}")
    iterations = made.iterations if isinstance(made, CNNF) else 0
    name = f"{path.name}:{function}" + (f" ({iterations} iterations)" if iterations else "")
    return Network(name, made, preprocessing, weights or "as built", dict(regions), code=path.read_bytes())


def _call(path: Path, function: str, spec: str) -> object:
    """What ``function()`` of the Python file ``path`` returns."""
    name = f"_network_of_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    python = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = python  # so that the sources of its classes can be found
    if str(path.resolve().parent) not in sys.path:
        sys.path.append(str(path.resolve().parent))  # for what it imports from beside itself
    try:
        module_spec.loader.exec_module(python)
    except (Exception, SystemExit) as error:
        raise ValueError(f"model {spec}: running {path} failed: {type(error).__name__}: {error}") from error
    if not callable(getattr(python, function, None)):
        known = [key for key, value in vars(python).items() if inspect.isfunction(value) and value.__module__ == name]
        raise unknown("function", function, known, where=str(path))
    try:
        return getattr(python, function)()
    except (Exception, SystemExit) as error:
        raise ValueError(f"model {spec}: calling {function}() in {path} failed: {type(error).__name__}: {error}") from error


def _load(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    weight_files.check_state(state, module, f"weights {source}")
    module.load_state_dict(state, strict=False)  # checked above; old files lack num_batches_tracked


def network_digest(module: nn.Module) -> str:
    """SHA-256 over all that a network's features depend on, but for the settings of a CNNF's feedback.

    The architecture, all parameters and buffers, the plain attributes of every module (a gain that its ``forward`` reads),
    and the sources of classes that are not torch's or this package's own.
    """
    whole = hashlib.sha256(repr(module).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        _add_tensor(whole, name, tensor)
    machinery = vars(nn.Module())
    for path, part in module.named_modules():
        for name in sorted(vars(part).keys() - machinery) if not isinstance(part, CNNF) else ():
            value = getattr(part, name)
            if isinstance(value, (Tensor, np.ndarray)):
                _add_tensor(whole, f"{path}.{name}", torch.as_tensor(value))
            else:
                plain = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
                whole.update(f"{path}.{name}={plain}".encode())
    for kind in sorted({type(m) for m in module.modules()}, key=repr):
        if kind.__module__.split(".")[0] not in ("torch", "torchvision", "cnnf_brain"):
            source = inspect.getsourcefile(kind)
            whole.update(Path(source).read_bytes() if source and Path(source).is_file() else repr(kind).encode())
    return whole.hexdigest()


def _add_tensor(whole: Any, name: str, tensor: Tensor) -> None:
    whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


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
