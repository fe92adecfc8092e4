"""A network and what is asked for -> its plugin, ready to be written -> the files that Brain-Score takes.

These are a folder for a pull request and a ZIP for the website.
"""

from __future__ import annotations

import hashlib
import json
import pprint
import shutil
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from cnnf_brain import activations, images, io, networks, results
from cnnf_brain.brainscore import vendor
from cnnf_brain.brainscore.check import read_submission, taken
from cnnf_brain.brainscore.commitment import REGIONS, Identity, Weights, commit, made_hash
from cnnf_brain.brainscore.toy import pictures
from cnnf_brain.brainscore.wrapper import LOGITS, check_name, default_bins
from cnnf_brain.checks import unknown
from cnnf_brain.model import weights as weight_files
from cnnf_brain.model import zoo
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import Card, read_card
from cnnf_brain.networks import Network, load_network
from cnnf_brain.types import LayerAt

TEXTS = tomllib.loads((resources.files("cnnf_brain.brainscore") / "plugin.toml").read_text(encoding="utf-8"))
BIBTEX: str = TEXTS["bibtex"]
KIND = "submit"  # whose folder it is, in results.RECORD


@dataclass(frozen=True)
class Options:
    """What a plugin holds beside its network; what is left open follows from the network.

    ``weights``: the file, or the published name, that the plugin loads; own code without weights makes them itself. ``place``:
    where Brain-Score finds that file, ``stored`` and ``version_id``, or ``url``; without a place the plugin is a draft. ``model``:
    what ``load_network`` takes. ``name``: what the identifier begins with (by default the model). ``regions``: V1, V2, V4, IT ->
    layer, over the network's own; a layer without ``@`` is taken at the last iteration. ``time_bins``: (start, end) in ms of
    iterations 0, 1, ..., by default 70-120, 120-170, ... ``neural_only``: no behaviour, for networks without ImageNet's 1000
    classes; V1 and V2 may have no layer. ``bibtex``: the reference for the leaderboard.
    """

    weights: str | Path | None = None
    place: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    name: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    time_bins: tuple[tuple[int, int], ...] | None = None
    neural_only: bool = False
    bibtex: str = BIBTEX


@dataclass(frozen=True)
class Request(Options):
    """A plugin whose network is loaded for it; what is left open is as on the weights' card, or as ``load_network`` has it.

    ``iterations`` 0 is the CNN. ``feedback``: fields of FeedbackSettings. ``image_size``: pixels. ``device``: where the network is
    tried; no part of the plugin.
    """

    iterations: int | None = None
    feedback: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    device: str | torch.device = images.AUTO


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
    """The plugin of a network that is loaded for it.

    Raises what ``load_network`` and ``prepare`` raise, and a ValueError for settings of a feedback that is not run.
    """
    given = None if request.weights is None else str(request.weights)
    if given == networks.RANDOM:
        raise ValueError("random weights cannot be loaded by Brain-Score; save them in a file, and give that")
    card = Card() if given is None or weight_files.is_published(given) else read_card(given)
    model = request.model or card.arch or "vgg16"
    source = given or zoo.default_weights(model, request.iterations)[0]
    settings: dict[str, Any] = {name: getattr(request, name) for name in ("iterations", "feedback", "image_size", "device")}
    network = load_network(model, source, **settings)
    if request.feedback and not network.iterations:
        raise ValueError(
            f"model {model}: settings of the feedback are given ({', '.join(request.feedback)}), and it runs no feedback iteration"
        )
    return prepare(network, replace(request, model=model, weights=source))


def prepare(network: Network, options: Options) -> Plugin:
    """The plugin of a network in memory. It is loaded once more as the plugin will, and tried on a few made-up images.

    >>> network = load_network("vgg16", "trained.safetensors", iterations=2)
    >>> plugin = prepare(network, Options(regions={"V4": "features.16@1", "IT": "features.23"}))
    >>> write_plugins([plugin], Path("submission"))

    A network that is not from ``load_network`` takes ``options.model``, the function that makes it (``path/to/file.py:function``).
    A ValueError or OSError for a name that is refused or taken; a layer that is not named or not there; no 1000 classes for
    behavioural tasks; weights that are not there, or not the network's; features of an image that depend on its batch.
    """
    model = options.model or network.origin.partition(" ")[0]
    if not model:
        raise ValueError(f"{network.name}: a plugin makes its network anew; give model, the function that makes this one")
    own = vendor.read_own_code(model)
    path, weights = _weights(network, model, _source(network, model, options), options.place)
    identity = Identity(
        name=_name(options.name, own.function if own else model.removeprefix(zoo.TORCHVISION), network.iterations),
        model=f"{own.file}:{own.function}" if own else model,
        iterations=network.iterations,
        feedback={} if own else _feedback(network),
        preprocessing=asdict(network.preprocessing),
        regions=_regions(network, options.regions),
        readout="" if options.neural_only else LOGITS,
        time_bins=options.time_bins or default_bins(network.iterations),
        weights=weights,
        code=own.digest if own else "",
    )
    committed = commit(identity, network)  # every layer is there, and the classes are
    if where := taken(identity.identifier):
        told = f"is taken: brainscore-vision ships it in models/{where}; use another name"
        raise ValueError(f"identifier {identity.identifier!r} {told}")
    again = identity.load(path, Path(model.rpartition(":")[0]).parent)
    if made_hash(again.module) != made_hash(network.module):
        raise ValueError(f"{network.name}: {path} holds other weights than the network; save these, and give that file")
    # the first pass shows whose row is whose; feedback amplifies rounding, which differs between batch sizes
    names = [*identity.regions.values(), *filter(None, [identity.readout])]
    tried = [LayerAt(committed.activations_model.layer_at(name).layer) for name in names]
    activations.probe(network, pictures(activations.PROBED), tried)
    return Plugin(identity, path, own, bool(network.card.content), options.bibtex)


def _source(network: Network, model: str, options: Options) -> str | None:
    """The file or published name of a network's weights; None where the user's own code makes them."""
    if options.weights is not None:
        return str(options.weights)
    if weight_files.is_published(network.weights) or Path(network.weights).is_file():
        return network.weights
    return zoo.default_weights(model, network.iterations)[0]


def _weights(network: Network, model: str, source: str | None, place: Mapping[str, str]) -> tuple[Path | None, Weights]:
    """The file on this machine, and what the plugin knows of it. Published weights lie in torch's cache once they are loaded."""
    if source is None:
        return None, Weights("", made_hash(network.module), **place)
    path, arch = Path(source), model.removeprefix(zoo.TORCHVISION)
    if weight_files.is_published(source):
        path = weight_files.published_file(arch, source)
        place = place or {"url": weight_files.published_entry(arch, source).url}
    with io.open_file(path) as file:
        sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    return path, Weights(path.name, io.sha256(path), sha1, **place)


def _feedback(network: Network) -> dict[str, Any]:
    """The settings of the feedback besides the iterations; none where it does not run."""
    settings = network.module.settings.as_dict() if isinstance(network.module, CNNF) and network.iterations else {}
    return {name: value for name, value in settings.items() if name != "iterations"}


def _regions(network: Network, given: Mapping[str, str]) -> dict[str, str]:
    """Region -> layer at an iteration, the last one unless it is named: what feedback has settled to."""
    for region in given:
        if region not in REGIONS:
            raise unknown("region", region, REGIONS, "Brain-Score")
    layers = {**network.layers, **given}

    def at(name: str) -> str:
        return name if "@" in name else str(replace(LayerAt.parse(name), iteration=network.iterations))

    return {region: at(layers[region]) for region in REGIONS if region in layers}


def _name(given: str | None, default: str, iterations: int) -> str:
    """What the identifier begins with, in letters that Brain-Score takes."""
    if given is not None:
        check_name(given)
    return f"{given or default}_{'CNNF' if iterations else 'CNN'}"


def plugin_files(plugin: Plugin) -> dict[str, str]:
    """Path inside the plugin's folder -> text, of all its files.

    The package's part that it needs is among them, so that Brain-Score's machines need no cnnf-brain.
    """
    identity, own = plugin.identity, plugin.own
    name = identity.identifier
    imports = own.imports if own else set()
    outside = {one.partition(".")[0] for one in imports}
    outside |= {"safetensors"} if identity.weights.file.endswith(".safetensors") else set()
    literal = pprint.pformat(io.plain(identity.as_dict()), sort_dicts=False, width=116)
    lines = "".join(f"    {line!r}\n" for line in plugin.bibtex.strip().splitlines(keepends=True))
    content = {
        "__init__.py": TEXTS["init"].format(identifier=name),
        "model.py": TEXTS["model"].format(title=identity.title, identity=literal, bibtex=f"(\n{lines})", own=vendor.OWN),
        "test.py": TEXTS["test"].format(identifier=name),
        f"region_layer_map/{name}.json": json.dumps(identity.regions, indent=2) + "\n",
        **vendor.package_files(imports),
    }
    requirements = vendor.requirements_of(outside)
    if requirements:
        content["requirements.txt"] = "".join(f"{line}\n" for line in requirements)
    return content | (own.files(name) if own else {})


def write_plugins(plugins: Sequence[Plugin], output: Path) -> list[tuple[Path, Path]]:
    """Write ``output/IDENTIFIER/`` (for a pull request) and ``output/IDENTIFIER.zip`` (for the website) of each plugin.

    ``run.json`` beside them notes where the weights lie on this machine. Plugins that were written there before stay. The same
    plugin gives the same bytes. A ValueError or OSError where ``output`` holds anything else, cannot be written, or is held by
    another process.
    """
    with results.results(output, KIND, {}) as folder:
        weights = read_record(output)
        for plugin in plugins:
            name, content = plugin.identity.identifier, plugin_files(plugin)
            for file, text in content.items():
                (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / name / file).write_text(text, encoding="utf-8")
            write_zip(folder / f"{name}.zip", name, content)
            weights[name] = None if plugin.weights is None else str(plugin.weights.resolve())
        for path in (output / name for identifier in weights for name in (identifier, f"{identifier}.zip")):
            if path.exists() and not (folder / path.name).exists():  # written before
                (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
        about = {"command": results.command(), "commit": results.commit(), "versions": results.versions()}
        io.write_json(folder / results.RECORD, {"weights": weights, **about})
    names = [plugin.identity.identifier for plugin in plugins]
    return [(output / name, output / f"{name}.zip") for name in names]


def write_zip(path: Path, name: str, content: Mapping[str, str]) -> None:
    """``NAME/models/NAME/...`` with an entry for every folder, which the website looks for."""
    root = f"{name}/models/{name}"
    folders = {f"{name}/", f"{name}/models/", f"{root}/"}
    folders |= {f"{root}/{file.rpartition('/')[0]}/" for file in content if "/" in file}
    entries = {**dict.fromkeys(sorted(folders), ""), **{f"{root}/{file}": text for file, text in content.items()}}
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in entries.items():
            entry = zipfile.ZipInfo(place)  # dated 1980, so that the same plugin gives the same bytes
            entry.external_attr = (0o40755 << 16 | 0x10) if entry.is_dir() else 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED if entry.is_dir() else zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)


def read_record(output: Path) -> dict[str, str | None]:
    """Identifier -> path of its weights (None: its own code makes them), as ``write_plugins`` left it; empty where it did not."""
    path = output / results.RECORD
    if not path.is_file():
        return {}
    try:
        record = io.read_json(path)
        return dict(record["weights"]) if record.get("kind") == KIND else {}
    except (ValueError, KeyError, TypeError) as error:
        told = "remove it, and name the weights where the plugin is checked"
        raise ValueError(f"{path} is damaged ({error}); {told}") from error


def recorded_weights(archive: Path) -> Path | None:
    """The weights that were noted beside a ZIP when it was written; None where they are not there any more."""
    known = read_record(archive.parent)
    noted = next((known[name] for name in read_submission(archive).identifiers if name in known), None)
    return Path(noted) if noted is not None and Path(noted).is_file() else None
