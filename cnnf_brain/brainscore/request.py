"""What is asked for -> a plugin that is ready to be written: its identity, its weights, the user's own code in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cnnf_brain import activations, io, networks
from cnnf_brain.brainscore import vendor
from cnnf_brain.brainscore.commitment import commit
from cnnf_brain.brainscore.identity import REGIONS, Identity, Weights, is_own_code, made_hash
from cnnf_brain.brainscore.pictures import encoded_pictures
from cnnf_brain.brainscore.rules import taken
from cnnf_brain.brainscore.time_bins import default_bins
from cnnf_brain.brainscore.wrapper import LOGITS, check_name
from cnnf_brain.checks import unknown
from cnnf_brain.model import weights as weight_files
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import Card, read_card
from cnnf_brain.model.zoo import ARCHITECTURES
from cnnf_brain.networks import PUBLISHED, SMALL, Network, load_network, shipped_weights
from cnnf_brain.types import LayerAt

BIBTEX = """@inproceedings{Huang2020CNNF,
  title     = {Neural Networks with Recurrent Generative Feedback},
  author    = {Huang, Yujia and Gornet, James and Dai, Sihui and Yu, Zhiding and Nguyen, Tan and Tsao, Doris Y.
               and Anandkumar, Anima},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {33},
  year      = {2020}
}"""
DEFAULT_MODEL, DEFAULT_ITERATIONS = "vgg16", 2


@dataclass(frozen=True)
class Request:
    """What one plugin is to hold; what is left open is taken from the weights' card or stands for itself.

    ``model`` is what ``load_network`` takes: any network that can be compared. ``weights``: a file or a published name; by default
    as ``load_network`` has it. ``place``: ``stored`` and ``version_id``, or ``url``; published weights have their own.
    ``iterations`` 0 is the CNN. ``regions`` overrides the layers of ``networks.REGIONS``; a layer without ``@`` is taken at the
    last iteration. ``neural_only`` is for networks without ImageNet's 1000 classes; V1 and V2 may then have no layer. ``device`` is
    where the network is loaded and tried; it is no part of the plugin.
    """

    weights: str | Path | None = None
    place: Mapping[str, str] = field(default_factory=dict)
    iterations: int | None = None
    model: str | None = None
    name: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    time_bins: tuple[tuple[int, int], ...] | None = None
    image_size: int | None = None
    neural_only: bool = False
    device: str | torch.device = networks.AUTO
    bibtex: str = BIBTEX


@dataclass(frozen=True)
class Plugin:
    """A plugin that is ready to be written: its identity, the user's own code in it, its weights on this machine."""

    identity: Identity
    weights: Path | None = None
    own: vendor.OwnCode | None = None
    carded: bool = False  # whether the weights' card says how they were trained
    bibtex: str = BIBTEX


def control_of(request: Request, weights: str | Path | None = None, place: Mapping[str, str] | None = None) -> Request:
    """The CNN beside a CNN-F: without feedback, of the same weights unless others are given."""
    regions = {region: str(LayerAt(LayerAt.parse(layer).layer)) for region, layer in request.regions.items()}
    other: dict[str, Any] = {} if weights is None else {"weights": weights, "place": place or {}}
    return replace(request, iterations=0, feedback={}, time_bins=None, regions=regions, **other)


def identify(request: Request) -> Plugin:
    """The plugin that is asked for, with its network loaded, every layer checked, and a few made-up images run through it.

    Raises
    ------
    ValueError
        A name that Brain-Score refuses, a region without layer, a layer that the network lacks, weights that do not fit, a
        network without 1000 classes that is to take behavioural tasks, an identifier that is taken, a network whose function makes
        other weights each time, features of an image that depend on the other images of a batch (see ``activations.probe``).
    OSError
        Weights that are not there.
    """
    request = _with_model(request)
    model = str(request.model)
    source = _source(request)
    network = _load(request, source)
    iterations = network.iterations
    for region in request.regions:
        if region not in REGIONS:
            raise unknown("region", region, REGIONS, "Brain-Score")
    layers = {region: layer for region, layer in network.layers.items() if region in REGIONS} | dict(request.regions)
    own = vendor.read_own_code(model) if is_own_code(model) else None
    path = None if source is None else _file(model, source)
    settings = network.module.settings.as_dict() if isinstance(network.module, CNNF) and iterations else {}
    identity = Identity(
        name=_name(request, own, iterations),
        model=f"{own.file}:{own.function}" if own else model,
        iterations=iterations,
        feedback={} if own else {key: value for key, value in settings.items() if key != "iterations"},
        preprocessing=asdict(network.preprocessing),
        regions={region: _at_last(layers[region], iterations) for region in REGIONS if region in layers},
        readout="" if request.neural_only else LOGITS,
        time_bins=request.time_bins or default_bins(iterations),
        weights=_weights(request, network, source, path),
        code=own.digest if own else "",
    )
    wrapper = commit(identity, network).activations_model  # every layer is there, and the classes are
    if identity.weights.made and made_hash(_load(request, source).module) != identity.weights.sha256:
        raise ValueError(f"model {model}: makes other weights each time; save them in a file, and give that as the weights")
    where = taken(identity.identifier)
    if where:
        raise ValueError(
            f"identifier {identity.identifier!r} is taken: brainscore-vision ships it in models/{where}; use another name"
        )
    # the first pass shows whose row is whose; feedback amplifies rounding, which differs between batch sizes
    tried = [LayerAt(wrapper.layer_at(name).layer) for name in (*identity.regions.values(), identity.readout) if name]
    activations.probe(network, encoded_pictures(activations.PROBED), tried)
    return Plugin(identity, path, own, bool(path and read_card(path).content), request.bibtex)


def _with_model(request: Request) -> Request:
    """The request with its model, iterations and image size settled by the weights' card where they are left open."""
    given = request.weights
    if str(given) == "none":
        raise ValueError("random weights cannot be loaded by Brain-Score; save them in a file, and give that")
    card = Card() if given is None or weight_files.is_published(str(given)) else read_card(given)
    model = request.model or card.arch or DEFAULT_MODEL
    iterations = request.iterations
    if iterations is None and (model == SMALL or model in ARCHITECTURES):
        iterations = DEFAULT_ITERATIONS if card.iterations is None else card.iterations
    size = card.image_size if request.image_size is None else request.image_size
    return replace(request, model=model, iterations=iterations, image_size=size)


def _source(request: Request) -> str | None:
    """The file or published name of the weights; None where the network's own code makes them."""
    model = str(request.model)
    if request.weights is not None:
        return str(request.weights)
    if is_own_code(model):
        return None
    return shipped_weights(request.iterations != 0) if model == SMALL else PUBLISHED


def _load(request: Request, source: str | None) -> Network:
    model, iterations = str(request.model), request.iterations or 0
    if request.feedback and (is_own_code(model) or not iterations):
        where = "the function itself sets them" if is_own_code(model) else "it runs no feedback iteration"
        raise ValueError(f"model {model}: settings of the feedback are given ({', '.join(request.feedback)}), and {where}")
    if not is_own_code(model):
        settings: dict[str, Any] = {"feedback": request.feedback, "image_size": request.image_size}
        return load_network(model, source, iterations=iterations, device=request.device, **settings)
    network = load_network(model, source, image_size=request.image_size, device=request.device)
    if isinstance(network.module, CNNF):
        network.module.iterations = network.iterations if request.iterations is None else request.iterations
    elif iterations:
        raise ValueError(f"model {model}: has no feedback; it runs with 0 iterations alone")
    return network


def _file(model: str, source: str) -> Path:
    """The file of weights on this machine: published ones lie in torch's cache once they are loaded."""
    if not weight_files.is_published(source):
        return Path(source)
    return weight_files.published_file(model.removeprefix("torchvision:"), source)


def _weights(request: Request, network: Network, source: str | None, path: Path | None) -> Weights:
    if path is None:
        return Weights("", made_hash(network.module), **request.place)
    place = dict(request.place)
    if not place and source and weight_files.is_published(source):
        place = {"url": weight_files.published_entry(str(request.model).removeprefix("torchvision:"), source).url}
    return Weights(path.name, io.sha256(path), _sha1(path), **place)


def _name(request: Request, own: vendor.OwnCode | None, iterations: int) -> str:
    """What the identifier begins with: the model, in letters that Brain-Score takes."""
    kind = "CNNF" if iterations else "CNN"
    if request.name is not None:
        check_name(request.name)
    default = own.function if own else str(request.model).removeprefix("torchvision:")
    return f"{request.name or default}_{kind}"


def _at_last(layer: str, iterations: int) -> str:
    """``features.23`` -> ``features.23@2``: what feedback has settled to is what the model says of a region."""
    return layer if "@" in layer else str(replace(LayerAt.parse(layer), iteration=iterations))


def _sha1(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()
