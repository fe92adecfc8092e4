"""A network's name and weights -> a Network ready to be shown images. The one place where weights and card become a network."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain import io
from cnnf_brain.checks import check_text, load_offered, unknown
from cnnf_brain.identity import Unidentifiable, call, network_identity, weights_digest
from cnnf_brain.images import AUTO, Preprocessing, pick_device
from cnnf_brain.model import weights as weight_files
from cnnf_brain.model import zoo
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.layers import FeatureNorm
from cnnf_brain.model.settings import checked_iterations
from cnnf_brain.model.weights import HUB, SETTINGS, SMALL, Card, read_card
from cnnf_brain.model.zoo import ARCHITECTURES, REGIONS, TORCHVISION, check_spec, default_weights, short_spec

RANDOM = "none"  # in place of weights
UNTRAINED, TRAINED, CHANGED = "feedback untrained", "feedback trained", "feedback settings changed after training"
NO_FEEDBACK = "{}: has no feedback; it runs with 0 iterations alone, and takes no feedback settings"
BEYOND = "feedback trained for {} iterations"  # fewer than it runs


@dataclass(frozen=True, eq=False)
class Network:
    """A network with what it takes to show it images and to tell it from others.

    Attributes
    ----------
    module
        Any torch module that takes (B, C, size, size) and returns a tensor. It is put into evaluation mode.
    preprocessing
        How an image becomes the module's input.
    layers
        The layer that stands for a region, by region (``{"V4": "layer2"}``), where one is known.
    name, weights
        How results call it; by default the class of the module, and ``as built``.
    headless
        Whether it lacks a classifier.
    card
        What the file of its weights says.
    code
        The user's own code that made it.
    origin
        Architecture and weights in words (see ``Plan.origin``); empty where they are not known.

    Examples
    --------
    >>> import torch
    >>> from cnnf_brain import Network, Preprocessing
    >>> module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> Network(module, Preprocessing(32), layers={"V4": "1"}).layer_of("V4")
    '1'
    """

    module: nn.Module
    preprocessing: Preprocessing
    layers: Mapping[str, str] = field(default_factory=dict)
    _: KW_ONLY
    name: str = ""
    weights: str = "as built"
    headless: bool = False
    card: Card = field(default_factory=Card)
    code: bytes = field(default=b"", repr=False)
    origin: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"the module is a {type(self.module).__name__}, expected a torch.nn.Module")
        if not isinstance(self.preprocessing, Preprocessing):
            raise TypeError(f"preprocessing is a {type(self.preprocessing).__name__}, expected a cnnf_brain.Preprocessing")
        if not isinstance(self.layers, Mapping) or not all(isinstance(layer, str) for layer in self.layers.values()):
            raise TypeError(f"layers is {self.layers!r}, expected a dict from regions to names of layers")
        if not (isinstance(self.name, str) and isinstance(self.weights, str) and isinstance(self.card, Card)):
            raise TypeError(f"name {self.name!r} and weights {self.weights!r}: expected texts; card: expected a Card")
        check_text("the name of a network,", self.name)
        check_text("the label of weights,", self.weights)
        self.module.eval()
        object.__setattr__(self, "name", self.name or type(self.module).__name__)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        return next(tensors, torch.empty(0)).device

    @property
    def identity(self) -> str | None:
        """SHA-256 over all that features depend on but feedback settings and the preprocessing's fields; None where unknown."""
        return self._identified()[0]

    @property
    def unidentified(self) -> str:
        """Why the network has no identity; empty where it has one."""
        return self._identified()[1]

    def _identified(self) -> tuple[str | None, str]:
        try:
            return network_identity(self.module, self.code, self.preprocessing), ""
        except Unidentifiable as error:
            return None, str(error)

    @property
    def digest(self) -> str:
        """The identity, or, without one, SHA-256 over architecture and weights."""
        return self.identity or weights_digest(self.module)

    @property
    def iterations(self) -> int:
        """Feedback iterations that it runs; 0 for a network without feedback."""
        return self.module.iterations if isinstance(self.module, CNNF) else 0

    @property
    def feedback(self) -> str:
        """Whether the feedback was trained as it is run: UNTRAINED, TRAINED, BEYOND or CHANGED; empty without feedback."""
        if not isinstance(self.module, CNNF) or not self.module.iterations:
            return ""
        if not self.card.iterations:
            return UNTRAINED
        now = self.module.settings.as_dict()
        same = all(now[name] == value for name, value in self.card.feedback.items() if name != "tolerance")
        if same and self.module.iterations > self.card.iterations:
            return BEYOND.format(self.card.iterations)
        return TRAINED if same else CHANGED

    @property
    def title(self) -> str:
        """The name, with the state of the feedback."""
        return f"{self.name} ({self.feedback})" if self.feedback else self.name

    def layer_of(self, region: str) -> str:
        """The layer that stands for ``region``; a ValueError where none is known."""
        if region not in self.layers:
            raise ValueError(f"{self.name}: no layer is known for region {region!r}; name one")
        return self.layers[region]


def load_network(
    spec: str,
    weights: str | None = None,
    *,
    iterations: int | None = None,
    feedback: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    device: str | torch.device = AUTO,
    seed: int = 0,
) -> Network:
    """The network that ``spec`` names, as its weights' card says that it was trained; arguments that are given override the card.

    Parameters
    ----------
    spec
        ``small`` (the shipped Fashion-MNIST pair), ``vgg16``, ``alexnet`` or another of torchvision's VGGs (all of these as CNN-F;
        with 0 iterations the CNN), ``torchvision:NAME`` (any network of torchvision), or ``path/to/file.py:function``
        (a function without arguments that returns an nn.Module; its attribute ``preprocessing``, if any, is a
        ``cnnf_brain.images.Preprocessing``, and its attribute ``regions`` maps regions to layer names). A name that an
        installed package adds stands for such a function. ``hf:OWNER/NAME@COMMIT`` is a repository of Hugging Face that
        ``cnnf_brain.hub_folder`` made, at one commit; it brings its weights.
    weights
        A file, a published name, or ``none`` for random weights drawn with ``seed``. By default those shipped (``small``) or
        ``IMAGENET1K_V1``.
    iterations
        Feedback iterations; by default as on the card, without a card 2. Networks without feedback take 0 alone.
    feedback
        Settings that override those on the card: target, step, match_norm, match_layers, ada_relu, tolerance.
    image_size
        Pixels; by default as on the card, else 224 (``small``: 28; ``torchvision:NAME``: as it was trained).
    device
        ``auto`` (a GPU where there is one), or torch's name.

    Raises
    ------
    ValueError, OSError
        An unknown name, a file that is missing or does not fit, weights that cannot be downloaded.

    Examples
    --------
    >>> from cnnf_brain import load_network
    >>> load_network("small", iterations=1).title
    'small CNN-F (feedback trained)'
    """
    wish = plan(spec, weights, iterations=iterations, feedback=feedback, image_size=image_size, seed=seed)
    return place(wish.load(), pick_device(device))


def place(network: Network, device: str | torch.device) -> Network:
    """The network in evaluation mode on a device, its weights in channels_last."""
    module = network.module.eval().to(pick_device(device)).to(memory_format=torch.channels_last)
    return replace(network, module=module)


@dataclass(frozen=True)
class Plan:
    """What ``load_network`` is to load, settled from names and card before any weights are read or downloaded."""

    spec: str
    weights: str | None  # as given
    source: str | None  # a file, a published name, None for random weights
    label: str
    card: Card
    iterations: int | None
    feedback: Mapping[str, Any]
    image_size: int | None
    seed: int

    def load(self) -> Network:
        """The network, on the CPU."""
        if self.has_feedback:
            network = self._convertible(self.source)
        else:
            network = _torchvision(self) if self.spec.startswith(TORCHVISION) else _from_file(self)
        return replace(network, origin=self.origin)

    def skeleton(self) -> Network:
        """The network without its weights (on the meta device), to check layers by; of a file of code the network itself."""
        if not self.from_names:
            return self.load()
        bare = replace(self, source=None)
        with torch.device("meta"):
            network = bare._convertible(None) if self.has_feedback else _torchvision(bare)
        return replace(network, origin=self.origin)

    @cached_property
    def origin(self) -> str:
        """Architecture and weights (a published name, a file's SHA-256, a seed), before these are loaded; empty for code of the
        user's."""
        if not self.from_names:
            return ""
        if self.source is None:
            return f"{self.spec} {RANDOM} {self.seed}"
        if weight_files.is_published(self.source):
            return f"{self.spec} {self.source}"
        return f"{self.spec} sha256:{io.sha256(Path(self.source))}"

    @property
    def has_feedback(self) -> bool:
        """Whether the network is built as a CNN-F."""
        return self.spec == SMALL or self.spec in ARCHITECTURES

    @property
    def from_names(self) -> bool:
        """Whether names alone make the network, and no code of the user's."""
        return self.has_feedback or self.spec.startswith(TORCHVISION)

    @property
    def preprocessing_size(self) -> int:
        """Pixels at which a network that is built as a CNN-F sees images."""
        return self.image_size or self.card.image_size or (28 if self.spec == SMALL else 224)

    def _convertible(self, source: str | None) -> Network:
        given = dict(self.feedback)
        if self.iterations is not None:
            given["iterations"] = self.iterations
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore", weight_files.HeadlessNetworkWarning)  # said by ``headless``
            torch.manual_seed(self.seed)
            if self.spec == SMALL:
                module = zoo.small_net(source, **(given if source else zoo.settings(self.card, zoo.SMALL_DEFAULTS, given)))
                preprocessing = Preprocessing(self.preprocessing_size, (0.5,), (0.5,))
            else:
                chosen = given if source else zoo.settings(self.card, zoo.STABLE, given)
                module = zoo.from_torchvision(self.spec, source, head=self.card.head, **chosen)
                preprocessing = self._imagenet()
        kind = "CNN-F" if module.iterations else "CNN"
        headless = self.spec != SMALL and not hasattr(module, "classifier")
        layers = REGIONS.get(self.spec, {})
        name, label = f"{self.spec} {kind}", self.label
        return Network(module, preprocessing, layers, name=name, weights=label, headless=headless, card=self.card)

    def _imagenet(self) -> Preprocessing:
        return Preprocessing(self.preprocessing_size, *weight_files.units(self.spec, self.source, self.card))


def plan(
    spec: str,
    weights: str | None = None,
    *,
    iterations: int | None = None,
    feedback: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Plan:
    """What ``load_network`` (see there) will load; nothing is read but the card, nothing downloaded but for ``hf:``."""
    if isinstance(spec, str) and spec.startswith(HUB):
        if weights is not None:
            raise ValueError(f"model {spec} brings its own weights; leave out weights {weights}")
        path = weight_files.from_hub(spec)
        if (arch := str(read_card(path).arch)) not in (SMALL, *ARCHITECTURES):  # never a file of code
            raise ValueError(f"model {spec}: by its card it is {arch}, expected {', '.join((SMALL, *ARCHITECTURES))}")
        made = plan(arch, path, iterations=iterations, feedback=feedback, image_size=image_size, seed=seed)
        return replace(made, label=spec)
    check_spec(spec)
    _check_settings(spec, weights, iterations, feedback, image_size)
    source, label = weights, str(weights)
    if weights == RANDOM:
        source, label = None, f"random, seed {seed}"
    elif weights is None:
        source, label = default_weights(spec, iterations)
    card = Card() if source is None or weight_files.is_published(source) else read_card(source)
    if spec == SMALL or spec in ARCHITECTURES:
        zoo.check_arch(card, spec, str(source))
    return Plan(spec, weights, source, label, card, iterations, dict(feedback or {}), image_size, seed)


def _check_settings(
    spec: str, weights: str | None, iterations: int | None, feedback: Mapping[str, Any] | None, image_size: int | None
) -> None:
    for name in feedback or {}:
        if name not in SETTINGS:
            raise unknown("feedback setting", name, SETTINGS)
    if weights == "":
        raise ValueError(
            f"weights of {spec} are an empty text; give a file, a published name, {RANDOM!r}, or leave them out"
        )
    if image_size is not None:
        Preprocessing(image_size)  # checks it
    if iterations is not None:
        checked_iterations(iterations)
    if spec.startswith(TORCHVISION) and (iterations or feedback):
        raise ValueError(NO_FEEDBACK.format(spec))


def _torchvision(wish: Plan) -> Network:
    from torchvision import models

    arch, source = wish.spec.removeprefix(TORCHVISION), wish.source
    published = source is not None and weight_files.is_published(source)
    entry = weight_files.published_entry(arch, str(source)) if published else next(iter(models.get_model_weights(arch)))
    # These two rescale their input inside: so it is set wherever torchvision loads its weights into them.
    extra = {"transform_input": True, "init_weights": source is None} if arch in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng():
        torch.manual_seed(wish.seed)
        module = models.get_model(arch, weights=None, **extra)
    headless = published and weight_files.lacks_classifier(arch, str(source))
    if headless:
        module.classifier = nn.Identity()
    if source is not None:
        _load(module, weight_files.published(arch, source) if published else weight_files.read_weights(source), source)
    trained = entry.transforms()
    size = wish.image_size or wish.card.image_size or trained.crop_size[0]
    preprocessing = Preprocessing(size, wish.card.mean or tuple(trained.mean), wish.card.std or tuple(trained.std))
    layers, label = REGIONS.get(arch, {}), wish.label
    return Network(module, preprocessing, layers, name=wish.spec, weights=label, headless=headless, card=wish.card)


def _from_file(wish: Plan) -> Network:
    spec = wish.spec
    made, code = call(spec) if ".py:" in spec else (load_offered("networks", spec)(), b"")
    if not isinstance(made, nn.Module):
        raise ValueError(f"model {spec}: the function returned a {type(made).__name__}, expected an nn.Module")
    if wish.source is not None:
        _load(made, weight_files.read_weights(wish.source), wish.source)
    _set_feedback(made, wish)
    preprocessing = getattr(made, "preprocessing", Preprocessing(wish.card.image_size or 224))
    if not isinstance(preprocessing, Preprocessing):
        raise ValueError(f"model {spec}: its preprocessing is a {type(preprocessing).__name__}, expected a Preprocessing")
    if wish.image_size is not None:
        preprocessing = replace(preprocessing, size=wish.image_size, resize=None)
    regions = getattr(made, "regions", {})
    if not isinstance(regions, Mapping) or not all(isinstance(layer, str) for layer in regions.values()):
        raise ValueError(f"model {spec}: its regions are {regions!r}, expected a dict {{region: layer}}")
    iterations = made.iterations if isinstance(made, CNNF) else 0
    name = short_spec(spec) + (f" ({iterations} iterations)" if iterations else "")
    return Network(made, preprocessing, dict(regions), name=name, weights=wish.label, card=wish.card, code=code)


def _set_feedback(made: nn.Module, wish: Plan) -> None:
    """The iterations and settings asked for, on a CNNF that a file of code has made."""
    if not isinstance(made, CNNF):
        if wish.iterations or wish.feedback:
            raise ValueError(f"{NO_FEEDBACK.format(wish.spec)}; return a cnnf_brain.CNNF to run it with")
        return
    card = wish.card
    iterations = wish.iterations if wish.iterations is not None else card.iterations
    if iterations is not None:
        made.iterations = iterations
    if wish.feedback:
        raise ValueError(f"{wish.spec}: the function itself sets the feedback of its CNNF; change it there")
    other = _unlike_the_card(made, card)
    if other:
        raise ValueError(
            f"{wish.spec}: by their card the weights {wish.label} were trained with {'; '.join(other)}; change it there"
        )


def _unlike_the_card(made: CNNF, card: Card) -> list[str]:
    """Where a CNNF from a file of code differs from what its weights were trained with."""
    now = made.settings.as_dict()
    trained = {name: value for name, value in card.feedback.items() if name != "tolerance"}
    other = [f"{name} {value}, the function {now[name]}" for name, value in trained.items() if now[name] != value]
    kinds = {part.kind for part in made.modules() if isinstance(part, FeatureNorm)}
    if card.normalisation and kinds - {card.normalisation}:
        other.append(f"normalisation {card.normalisation}, the function {' and '.join(sorted(kinds))}")
    return other


def _load(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    weight_files.check_state(state, module, f"weights {source}")
    module.load_state_dict(state, strict=False)  # checked above; old files lack num_batches_tracked
