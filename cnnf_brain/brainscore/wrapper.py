"""Brain-Score's PytorchWrapper with layers named by iteration (``features.23@2``)."""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cnnf_brain import activations
from cnnf_brain.io import short_hash
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.types import Images, LayerAt

try:
    from brainscore_vision.model_helpers.activations.pytorch import PytorchWrapper
except ImportError as error:
    raise ImportError(
        f"cnnf_brain.brainscore needs brainscore-vision ({error}): pip install 'cnnf-brain[brainscore]'"
    ) from error

LOGITS = "logits"  # Brain-Score's name for the behavioural readout
BATCH_SIZE = 8  # as products.layer_grams


class IterationWrapper(PytorchWrapper):
    """A Network as the activations model of Brain-Score's ModelCommitment, LayerScores and NeuralBenchmark.

    Layers are named ``features.23@2``, ``features.23@2:feedback`` or ``features.23`` (iteration 0, the first feedforward
    pass); networks without feedback have iteration 0 alone. ``logits`` is the network's output, of a CNNF that of the last
    iteration (``classifier.6@1`` names another one). Features and preprocessing are those of ``products.layer_grams``.

    Parameters
    ----------
    network : Network
        Stays on its device (PytorchWrapper itself would move it to the first GPU).
    identifier : str
        Brain-Score caches activations under this, the stimulus set and the image size alone: it must differ wherever
        features do. ``iteration_wrapper`` makes one that does.
    batch_size : int
        Images that run at once; Brain-Score fills the last batch up with copies of the last image.
    """

    def __init__(self, network: Network, identifier: str, batch_size: int = BATCH_SIZE) -> None:
        self._network = network
        super().__init__(nn.Module(), self.preprocess, identifier, batch_size=batch_size)  # an empty module to move
        self._model, self._device = network.module, network.device
        self.image_size = network.preprocessing.size

    def preprocess(self, paths: Iterable[str | Path]) -> np.ndarray:
        """Image files -> (B, C, size, size) float32; a ValueError that names a file that cannot be read."""
        names = [str(path) for path in paths]
        stimuli = Images(tuple(dict.fromkeys(names)), lambda i: Path(stimuli.ids[i]).read_bytes(), "stimuli")
        pixels = {name: self._network.preprocessing(stimuli.decode(i)).numpy() for i, name in enumerate(stimuli.ids)}
        return np.stack([pixels[name] for name in names])

    def get_activations(self, images: Sequence[Any], layer_names: Sequence[str]) -> OrderedDict[str, np.ndarray]:
        """Features (B, ...) float32 of preprocessed images (B, C, size, size), under the names that were asked for.

        Every array is a copy of its own. Raises ValueError for a layer that the network lacks (near names listed), an
        iteration that it does not run, ``logits`` of a network without a classifier, and features that are not finite.
        """
        places = {name: self.layer_at(name) for name in layer_names}
        pixels = np.stack([np.asarray(image) for image in images])
        rows = np.minimum(np.arange(len(pixels)), n_different(pixels) - 1)
        batch = torch.from_numpy(pixels[: rows[-1] + 1])
        self._model.eval()
        with torch.inference_mode(), activations.float32_convolutions(self._device):
            shaped = batch.to(self._device, memory_format=torch.channels_last)
            maps = activations.extract(self._model, shaped, list(dict.fromkeys(places.values())))
            found = ((name, at, maps[at]) for name, at in places.items())
            return OrderedDict(
                (name, np.array(activations.as_rows(map_, at).reshape(map_.shape)[rows])) for name, at, map_ in found
            )

    def get_layer(self, layer_name: str) -> nn.Module:
        """The module that computes ``layer_name``."""
        return self._model.get_submodule(self.layer_at(layer_name).layer)

    def layer_at(self, layer_name: str) -> LayerAt:
        """What a layer's name stands for; a ValueError where the network does not have it."""
        if layer_name != LOGITS:
            at = LayerAt.parse(layer_name)
            activations.check_layers(self._model, [at])
            return at
        if self._network.headless:
            raise ValueError(
                f"{self._network.name} has no classifier, and so no {LOGITS}; load weights that include it, or name a layer"
            )
        if isinstance(self._model, CNNF):
            return LayerAt(self._model.layer_names[-1], self._model.iterations)
        return LayerAt("")  # the module itself

    @property
    def iterations(self) -> int:
        """Feedback iterations that the network runs; 0 without feedback."""
        return self._network.iterations


def iteration_wrapper(network: Network, identifier: str | None = None, batch_size: int = BATCH_SIZE) -> IterationWrapper:
    """An IterationWrapper whose identifier tells its features from all others (see ``wrapper_identifier``).

    >>> wrapper = iteration_wrapper(load_network("vgg16", iterations=2))
    >>> regions = {"V1": "features.16@1", "V2": "features.16@1", "V4": "features.16@2", "IT": "features.23@2"}
    >>> ModelCommitment(wrapper.identifier, wrapper, layers=list(set(regions.values())),
    ...                 behavioral_readout_layer="logits", region_layer_map=regions)
    """
    return IterationWrapper(network, wrapper_identifier(network, identifier), batch_size)


def wrapper_identifier(network: Network, name: str | None = None) -> str:
    """``NAME_WEIGHTS_Nit_SETTINGS``, for instance ``vgg16_CNNF_0f3a9c1e_2it_77b0d2f4``.

    The first eight digits of ``network.identity`` (random ones where there is none), the number of iterations, and a hash of
    the feedback's other settings and the preprocessing: Brain-Score's caches of activations know none of these. The version of
    the software is not in it; clear ``$RESULTCACHING_HOME`` after an update.

    Parameters
    ----------
    network : Network
    name : str, optional
        What it begins with, by default the network's name. Letters, digits and ``_``, since Brain-Score's website takes no
        hyphens; a ValueError for anything else.
    """
    if name is None:
        name = re.sub(r"[^0-9A-Za-z]+", "_", network.name.replace("-", "")).strip("_")
    check_name(name)
    settings = network.module.settings.as_dict() if isinstance(network.module, CNNF) else {}
    iterations = settings.pop("iterations", 0)
    rest = short_hash([settings, repr(network.preprocessing)])
    known = network.identity or uuid.uuid4().hex  # what cannot be identified shares no cache
    return f"{name}_{known[:8]}_{iterations}it_{rest}"


def n_different(pixels: np.ndarray) -> int:
    """Images (B, ...) up to the first of the equal ones at the end, which Brain-Score fills a batch up with."""
    n = len(pixels)
    while n > 1 and np.array_equal(pixels[n - 1], pixels[n - 2]):
        n -= 1
    return n


def check_name(name: str) -> None:
    """A ValueError where an identifier cannot be, or begin with, ``name``: letters, digits and ``_`` alone, a letter first."""
    if re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        return
    tried = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
    if not tried[:1].isalpha():
        tried = f"model_{tried}".rstrip("_")
    raise ValueError(
        f"identifier {name!r} may hold letters, digits and _ alone, and begins with a letter (Brain-Score's website takes no "
        f"hyphens, and passes over folders that begin with _); try {tried!r}"
    )
