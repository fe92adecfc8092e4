"""What the code of a plugin calls: its identity -> weights, checked -> the model that Brain-Score scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain import io, networks
from cnnf_brain.brainscore.identity import AGAIN, BUCKET, STORED_BELOW, Identity, Weights
from cnnf_brain.brainscore.time_bins import IterationsInTime
from cnnf_brain.brainscore.wrapper import IterationWrapper
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network

try:
    from brainscore_core.supported_data_standards.brainio.s3 import load_weight_file
    from brainscore_vision.model_helpers.brain_transformation import ModelCommitment
    from brainscore_vision.model_interface import BrainModel
except ImportError as error:
    raise ImportError(
        f"cnnf_brain.brainscore needs brainscore-vision ({error}): pip install 'cnnf-brain[brainscore]'"
    ) from error

CLASSES = 1000  # ImageNet's, in the order of their synset names: Brain-Score's labels are read off them


class IterationCommitment(ModelCommitment):
    """Brain-Score's ModelCommitment of a Network: regions by iteration, iterations as time, behaviour from the logits.

    Parameters
    ----------
    wrapper : IterationWrapper
        Its identifier is the model's.
    regions : mapping
        Region -> layer (``features.23@2``).
    bins : sequence of (int, int)
        Time bins in ms of iterations 0, 1, ... (see ``IterationsInTime``).
    readout : str
        ``logits``, or empty for a network without ImageNet's 1000 classes: it then refuses behavioural tasks.

    Raises
    ------
    ValueError
        A layer or iteration that the network does not have.
    """

    def __init__(
        self, wrapper: IterationWrapper, regions: Mapping[str, str], bins: Sequence[tuple[int, int]], readout: str
    ) -> None:
        layers = list(dict.fromkeys(regions.values()))
        for name in layers:
            wrapper.layer_at(name)
        # Given, or Brain-Score would look for a map of its own, and choose layers by benchmarks that it downloads.
        super().__init__(
            wrapper.identifier,
            wrapper,
            layers=layers,
            behavioral_readout_layer=readout or layers[-1],
            region_layer_map=dict(regions),
        )
        self.layer_model: Any = IterationsInTime(self.layer_model._layer_model, bins)
        self._readout = readout

    def start_task(self, task: Any, *args: Any, **kwargs: Any) -> None:
        """Start a behavioural task; a NotImplementedError where the network has no ImageNet classes to read it from."""
        if not self._readout and task != BrainModel.Task.passive:
            raise NotImplementedError(
                f"{self.identifier} has no {CLASSES} ImageNet logits, so it takes neural benchmarks alone, no task {task!r}"
            )
        super().start_task(task, *args, **kwargs)

    def start_recording(self, recording_target: str, time_bins: Any) -> None:
        """Record from a region; ends a task, which ModelCommitment itself would go on answering with.

        A NotImplementedError for a region that the plugin leaves out.
        """
        known = self.layer_model.region_layer_map
        if recording_target not in known:
            raise NotImplementedError(
                f"{self.identifier} has no layer for {recording_target}; it can be recorded from in {', '.join(known)}"
            )
        self.do_behavior = False
        super().start_recording(recording_target, time_bins=time_bins)


def load_plugin(identity: Mapping[str, Any], identifier: str, code: Path | None = None) -> IterationCommitment:
    """The model of a plugin, on a GPU where there is one.

    Parameters
    ----------
    identity : mapping
        ``Identity.as_dict()``, as it stands in the plugin.
    identifier : str
        The one that the plugin registers.
    code : Path, optional
        The folder of the user's own code in the plugin.

    Raises
    ------
    ValueError
        An identifier or software that do not belong to the identity, weights with another SHA-256, a layer that the network
        lacks.
    OSError
        Weights that cannot be had.
    """
    known = Identity.from_dict(identity)
    known.check_identifier(identifier)
    known.check_features()
    path = None if known.weights.made else weights_file(known.weights)
    return commit(known, known.load(path, code, str(networks.pick_device())))


def commit(identity: Identity, network: Network) -> IterationCommitment:
    """The model of an identity whose network is loaded."""
    if identity.readout:
        check_classes(network)
    wrapper = IterationWrapper(network, identity.identifier)
    return IterationCommitment(wrapper, identity.regions, identity.time_bins, identity.readout)


def check_classes(network: Network) -> None:
    """A ValueError unless the network ends in ImageNet's 1000 classes."""
    found = n_classes(network)
    if found != CLASSES:
        raise ValueError(
            f"{network.name} ({network.weights}) has {found or 'no'} classes: Brain-Score's behavioural benchmarks read the "
            f"{CLASSES} logits of ImageNet. Give weights that were trained on ImageNet, or neural_only for a plugin that takes "
            "the neural benchmarks alone"
        )


def n_classes(network: Network) -> int:
    """Outputs for an image; 0 without a classifier."""
    module = network.module
    if network.headless:
        return 0
    if isinstance(module, CNNF):
        last = module.get_submodule(module.layer_names[-1])
        return last.out_features if isinstance(last, nn.Linear) else 0
    size = network.preprocessing.size
    with torch.inference_mode():
        output = module(torch.zeros(1, len(network.preprocessing.mean), size, size, device=network.device))
    return output.shape[1] if isinstance(output, Tensor) and output.dim() == 2 else 0


def weights_file(weights: Weights) -> Path:
    """The file of weights, from this machine or fetched from its place, with its SHA-256 checked.

    Raises
    ------
    OSError
        Where it is not here and its place cannot be reached, or none is named.
    ValueError
        Where it is another file.
    """
    here = local_file(weights)
    if not here.is_file():
        if weights.draft:
            raise OSError(
                f"weights {weights.file}: this plugin is a draft that names no place to load them from, and they are not at "
                f"{here}; upload them and write the plugin anew with their place (docs/brain-score.md)"
            )
        _fetch(weights, here)
    found = io.sha256(here)
    if found != weights.sha256:
        raise ValueError(
            f"weights {here}: their SHA-256 is {found}, the plugin's are {weights.sha256}; remove the file, so that it is "
            f"fetched again, or where other weights are meant {AGAIN}"
        )
    return here


def _fetch(weights: Weights, here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    try:
        if weights.url:
            torch.hub.download_url_to_file(weights.url, str(here), hash_prefix=weights.sha256, progress=False)
        else:
            load_weight_file(
                bucket=BUCKET,
                folder_name=STORED_BELOW,
                relative_path=weights.stored,
                version_id=weights.version_id,
                sha1=weights.sha1,
            )
    except Exception as error:  # Brain-Score raises bare Exceptions where it cannot download
        place = weights.url or f"{STORED_BELOW}/{weights.stored} (version {weights.version_id}) in Brain-Score's storage"
        raise OSError(
            f"weights {weights.file}: {place} cannot be loaded, or is another file ({' '.join(str(error).split())}); connect "
            f"to the network, or place the file at {here}"
        ) from error


def local_file(weights: Weights) -> Path:
    """Where the weights lie once they were fetched (a stored file where Brain-Score's own loader puts it)."""
    if weights.stored:
        home = Path(os.path.expanduser(os.getenv("BRAINSCORE_HOME", "~/.brain-score")))
        return home / STORED_BELOW / weights.stored
    return io.cache_folder("weights") / f"{weights.sha256[:16]}-{weights.file}"
