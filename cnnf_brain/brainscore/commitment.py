"""What the code of a plugin calls: its identity -> weights, checked -> the model that Brain-Score scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnf_brain import files
from cnnf_brain.brainscore.identity import AGAIN, STORED_BELOW, Identity, Weights
from cnnf_brain.brainscore.time_bins import IterationsInTime
from cnnf_brain.brainscore.wrapper import IterationWrapper
from cnnf_brain.model.feedback import CNNF
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
BUCKET = "brainscore-storage"


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
        """Record from a region; ends a task, which ModelCommitment itself would go on answering with."""
        self.do_behavior = False
        super().start_recording(recording_target, time_bins=time_bins)


def load_plugin(identity: Mapping[str, Any], identifier: str) -> IterationCommitment:
    """The model of a plugin, on a GPU where there is one.

    Parameters
    ----------
    identity : mapping
        ``Identity.as_dict()``, as it stands in the plugin.
    identifier : str
        The one that the plugin registers.

    Raises
    ------
    ValueError
        An identifier or installed software that do not belong to the identity, weights with another SHA-256, a layer that the
        network lacks.
    OSError
        Weights that cannot be had.
    """
    known = Identity.from_dict(identity)
    known.check_identifier(identifier)
    known.check_software()
    path = weights_file(known.weights)
    network = known.load(str(path), device="cuda" if torch.cuda.is_available() else "cpu")
    return commit(known, network)


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
            f"{CLASSES} logits of ImageNet. Give weights that were trained on ImageNet, or --neural-only for a plugin that "
            "takes the neural benchmarks alone"
        )


def n_classes(network: Network) -> int:
    """Outputs of the last layer; 0 without a classifier."""
    module = network.module
    if network.headless or not isinstance(module, CNNF):
        return 0
    last = module.get_submodule(module.layer_names[-1])
    return last.out_features if isinstance(last, nn.Linear) else 0


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
    if not here.is_file() and weights.draft:
        raise OSError(
            f"weights {weights.file}: this plugin is a draft that names no place to load them from, and they are not at {here}; "
            "upload them and write the plugin anew with --stored PATH VERSION_ID or --url URL (docs/brain-score.md)"
        )
    if weights.url:
        files.download(weights.url, f"sha256:{weights.sha256}", here.parent, here.name)
    elif weights.stored and not here.is_file():
        try:
            load_weight_file(
                bucket=BUCKET,
                folder_name=STORED_BELOW,
                relative_path=weights.stored,
                version_id=weights.version_id,
                sha1=weights.sha1,
            )
        except Exception as error:  # Brain-Score raises bare Exceptions where it cannot download
            raise OSError(
                f"weights {weights.file}: {STORED_BELOW}/{weights.stored} (version {weights.version_id}) cannot be loaded from "
                f"Brain-Score's storage ({' '.join(str(error).split())}); connect to the network, or place the file at {here}"
            ) from error
    found = files.sha256(here)
    if found != weights.sha256:
        raise ValueError(
            f"weights {here}: their SHA-256 is {found}, the plugin's are {weights.sha256}; remove the file, so that it is "
            f"fetched again, or where other weights are meant {AGAIN}"
        )
    return here


def local_file(weights: Weights) -> Path:
    """Where the weights lie once they were fetched (a stored file where Brain-Score's own loader puts it)."""
    if weights.stored:
        home = Path(os.path.expanduser(os.getenv("BRAINSCORE_HOME", "~/.brain-score")))
        return home / STORED_BELOW / weights.stored
    return files.cache_folder("weights") / f"{weights.sha256[:16]}-{weights.file}"
