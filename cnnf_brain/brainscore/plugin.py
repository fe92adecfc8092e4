"""Weights -> the plugin of a CNN-F or CNN, as Brain-Score takes it: a folder for a pull request, a ZIP for the website."""

from __future__ import annotations

import hashlib
import json
import pprint
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from cnnf_brain import files
from cnnf_brain.brainscore.commitment import check_classes, commit
from cnnf_brain.brainscore.identity import REGIONS, Identity, Weights
from cnnf_brain.brainscore.rules import taken
from cnnf_brain.brainscore.time_bins import default_bins
from cnnf_brain.brainscore.wrapper import LOGITS
from cnnf_brain.checks import unknown
from cnnf_brain.model.feedback import CNNF
from cnnf_brain.model.weights import read_card
from cnnf_brain.networks import Network, load_network
from cnnf_brain.types import LayerAt

BIBTEX = """@inproceedings{Huang2020CNNF,
  title     = {Neural Networks with Recurrent Generative Feedback},
  author    = {Huang, Yujia and Gornet, James and Dai, Sihui and Yu, Zhiding and Nguyen, Tan and Tsao, Doris Y.
               and Anandkumar, Anima},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {33},
  year      = {2020}
}"""
RECORD = "submission.json"  # beside the ZIPs: where the weights lie on this machine
DEFAULT_MODEL, DEFAULT_ITERATIONS = "vgg16", 2


@dataclass(frozen=True)
class Request:
    """What one plugin is to hold; what is left open is taken from the weights' card or stands for itself.

    ``iterations`` 0 is the CNN. ``regions`` overrides the layers of ``networks.REGIONS``; a layer without ``@`` is taken at the
    last iteration. ``neural_only`` is for networks without ImageNet's 1000 classes.
    """

    weights: Path
    place: Mapping[str, str] = field(default_factory=dict)  # stored and version_id, or url
    iterations: int | None = None
    model: str | None = None
    name: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    time_bins: tuple[tuple[int, int], ...] | None = None
    image_size: int | None = None
    neural_only: bool = False
    requires: str | None = None
    bibtex: str = BIBTEX


def control_of(request: Request, weights: Path | None = None, place: Mapping[str, str] | None = None) -> Request:
    """The CNN beside a CNN-F: without feedback, of the same weights unless others are given."""
    regions = {region: str(LayerAt(LayerAt.parse(layer).layer)) for region, layer in request.regions.items()}
    other: dict[str, Any] = {} if weights is None else {"weights": weights, "place": place or {}}
    return replace(request, iterations=0, feedback={}, time_bins=None, regions=regions, **other)


def identify(request: Request) -> Identity:
    """The identity of the plugin that is asked for, with its network loaded once and every layer checked.

    Raises
    ------
    ValueError
        A name that Brain-Score refuses, a region without layer, a layer that the network lacks, weights that do not fit, a
        network without 1000 classes that is to take behavioural tasks, an identifier that is taken.
    OSError
        Weights that are not there.
    """
    path = Path(request.weights)
    card = read_card(path)
    settings = card.get("feedback")
    on_card = settings.get("iterations") if isinstance(settings, dict) else None
    model = request.model or str(card.get("arch") or DEFAULT_MODEL)
    if on_card is None:
        on_card = DEFAULT_ITERATIONS
    iterations = int(on_card if request.iterations is None else request.iterations)
    check_sizes = {"image_size": request.image_size or card.get("image_size")}
    network = load_network(model, str(path), iterations=iterations, feedback=request.feedback, **check_sizes)  # type: ignore[arg-type]
    if not isinstance(network.module, CNNF):
        raise ValueError(f"model {model!r} is none that a file of weights alone makes; expected small, {DEFAULT_MODEL}, ...")
    for region in request.regions:
        if region not in REGIONS:
            raise unknown("region", region, REGIONS, "Brain-Score")
    layers = {region: layer for region, layer in network.regions.items() if region in REGIONS} | dict(request.regions)
    kind = "CNNF" if iterations else "CNN"
    identity = Identity(
        name=f"{request.name or model}_{kind}",
        model=model,
        iterations=iterations,
        feedback={key: value for key, value in network.module.settings.items() if key != "iterations"} if iterations else {},
        image_size=network.preprocessing.size,
        regions={region: _at_last(layers[region], iterations) for region in REGIONS if region in layers},
        readout="" if request.neural_only else LOGITS,
        time_bins=request.time_bins or default_bins(iterations),
        weights=Weights(path.name, files.sha256(path), _sha1(path), **request.place),
    )
    _check(identity, network)
    return identity


def _check(identity: Identity, network: Network) -> None:
    if identity.readout:
        check_classes(network)
    commit(identity, network)  # every layer is there
    where = taken(identity.identifier)
    if where:
        raise ValueError(
            f"identifier {identity.identifier!r} is taken: brainscore-vision ships it in models/{where}; use --name"
        )


def _at_last(layer: str, iterations: int) -> str:
    """``features.23`` -> ``features.23@2``: what feedback has settled to is what the model says of a region."""
    return layer if "@" in layer else str(replace(LayerAt.parse(layer), iteration=iterations))


def _sha1(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def plugin_files(identity: Identity, requires: str | None = None, bibtex: str = BIBTEX) -> dict[str, str]:
    """Path inside the plugin's folder -> text, of all its files."""
    name = identity.identifier
    regions = json.dumps(identity.regions, indent=2) + "\n"
    literal = pprint.pformat(files.plain(identity.as_dict()), sort_dicts=False, width=116)
    return {
        "__init__.py": _INIT.format(identifier=name),
        "model.py": _MODEL.format(title=title(identity), identity=literal, bibtex=_wrapped(bibtex.strip())),
        "test.py": _TEST.format(identifier=name),
        "requirements.txt": (requires or f"cnnf-brain=={metadata.version('cnnf-brain')}") + "\n",
        f"region_layer_map/{name}.json": regions,
    }


def _wrapped(text: str) -> str:
    """A literal of ``text``, line by line."""
    return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + ")"


def title(identity: Identity) -> str:
    """What the model is, in a line."""
    kind = (
        f"CNN-F, {identity.iterations} feedback iterations" if identity.iterations else "CNN, the control without feedback"
    )
    return f"{identity.model} as {kind}"


def write_plugin(identity: Identity, output: Path, requires: str | None = None, bibtex: str = BIBTEX) -> tuple[Path, Path]:
    """Write ``output/IDENTIFIER/`` (for a pull request) and ``output/IDENTIFIER.zip`` (for the website), each whole.

    The same identity gives the same bytes. An OSError where ``output`` cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    content = plugin_files(identity, requires, bibtex)
    folder, archive = output / identity.identifier, output / f"{identity.identifier}.zip"
    with tempfile.TemporaryDirectory(prefix=".plugin-", dir=output) as temporary:
        new = Path(temporary, "new")
        for name, text in content.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        shutil.move(new, folder)
    with files.whole_file(archive) as path:
        write_zip(path, identity.identifier, content)
    return folder, archive


def write_zip(path: Path, name: str, content: Mapping[str, str]) -> None:
    """``NAME/models/NAME/...`` with an entry for every folder, which the website looks for."""
    root = f"{name}/models/{name}"
    folders = {f"{name}/", f"{name}/models/", f"{root}/"}
    folders |= {f"{root}/{file.rpartition('/')[0]}/" for file in content if "/" in file}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted(folders):
            archive.writestr(_entry(folder, 0o40755), "")
        for file, text in content.items():
            archive.writestr(_entry(f"{root}/{file}", 0o100644), text)


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980, so that the same plugin gives the same bytes
    entry.external_attr = mode << 16 | (0x10 if name.endswith("/") else 0)
    entry.compress_type = zipfile.ZIP_STORED if name.endswith("/") else zipfile.ZIP_DEFLATED
    return entry


def write_record(output: Path, weights: Mapping[str, Path]) -> None:
    """``submission.json``: identifier -> the weights on this machine, which ``--check`` shows the plugin."""
    path = output / RECORD
    known = read_record(output)
    files.write_json(path, known | {name: str(file.resolve()) for name, file in weights.items()})


def read_record(output: Path) -> dict[str, str]:
    """Identifier -> path of its weights, as ``write_record`` left it; empty where there is none."""
    path = output / RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and give --weights FILE beside --check") from error


_INIT = """\
from brainscore_vision import model_registry

from .model import get_model

model_registry['{identifier}'] = lambda: get_model('{identifier}')
"""

_MODEL = '''\
"""{title}.

Written by `python -m cnnf_brain.submit`. The identifier follows from the identity below: change neither by hand.
"""

from cnnf_brain.brainscore import load_plugin

IDENTITY = {identity}

BIBTEX = {bibtex}


def get_model(identifier):
    """The model that Brain-Score scores; its weights are fetched, and their SHA-256 checked, when it is loaded."""
    return load_plugin(IDENTITY, identifier)


def get_bibtex(model_identifier):
    """The reference for the leaderboard."""
    return BIBTEX
'''

_TEST = """\
import json
from pathlib import Path

import pytest
from brainscore_vision import model_registry
from cnnf_brain.brainscore.identity import Identity
from cnnf_brain.brainscore.commitment import local_file

from .model import IDENTITY, get_bibtex, get_model

IDENTIFIER = '{identifier}'


def test_the_identifier_is_that_of_the_identity():
    assert IDENTIFIER in model_registry
    Identity.from_dict(IDENTITY).check_identifier(IDENTIFIER)


def test_the_installed_software_is_that_of_the_plugin():
    Identity.from_dict(IDENTITY).check_software()


def test_the_map_names_the_layers_of_the_identity():
    path = Path(__file__).parent / 'region_layer_map' / (IDENTIFIER + '.json')
    assert json.loads(path.read_text()) == IDENTITY['regions']
    assert set(IDENTITY['regions']) == {{'V1', 'V2', 'V4', 'IT'}}


def test_bibtex():
    assert get_bibtex(IDENTIFIER).strip().startswith('@')


def test_regions_can_be_recorded_from():
    weights = Identity.from_dict(IDENTITY).weights
    if not local_file(weights).is_file():
        pytest.skip('needs the weights, which are not on this machine; they are not fetched for a test')
    model = get_model(IDENTIFIER)
    assert model.identifier == IDENTIFIER
    for region in IDENTITY['regions']:
        model.start_recording(region, time_bins=[(70, 170)])
"""
