"""Plugins -> their files, as Brain-Score takes them: a folder for a pull request, a ZIP for the website."""

from __future__ import annotations

import json
import os
import pprint
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnf_brain import io, results
from cnnf_brain.brainscore import vendor
from cnnf_brain.brainscore.dependencies import requirements_of
from cnnf_brain.brainscore.identity import Identity
from cnnf_brain.brainscore.request import Plugin

KIND = "submit"  # whose folder it is, in results.RECORD


def plugin_files(plugin: Plugin) -> dict[str, str]:
    """Path inside the plugin's folder -> text, of all its files.

    The package's part that it needs is among them, so that Brain-Score's machines need no cnnf-brain.
    """
    identity, own = plugin.identity, plugin.own
    name = identity.identifier
    imports = own.imports if own else set()
    outside = {one.partition(".")[0] for one in imports}
    if identity.weights.file.endswith(".safetensors"):
        outside.add("safetensors")
    requirements = requirements_of(outside)
    literal = pprint.pformat(io.plain(identity.as_dict()), sort_dicts=False, width=116)
    content = {
        "__init__.py": _INIT.format(identifier=name),
        "model.py": _MODEL.format(
            title=title(identity), identity=literal, bibtex=_wrapped(plugin.bibtex.strip()), own=vendor.OWN
        ),
        "test.py": _TEST.format(identifier=name),
        f"region_layer_map/{name}.json": json.dumps(identity.regions, indent=2) + "\n",
        **vendor.package_files(imports),
    }
    if requirements:
        content["requirements.txt"] = "".join(f"{line}\n" for line in requirements)
    return content | (own.files(name) if own else {})


def _wrapped(text: str) -> str:
    """A literal of ``text``, line by line."""
    return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(keepends=True)) + ")"


def title(identity: Identity) -> str:
    """What the model is, in a line."""
    kind = (
        f"CNN-F, {identity.iterations} feedback iterations" if identity.iterations else "CNN, the control without feedback"
    )
    return f"{identity.model} as {kind}"


def write_plugins(plugins: Sequence[Plugin], output: Path) -> list[tuple[Path, Path]]:
    """Write ``output/IDENTIFIER/`` (for a pull request) and ``output/IDENTIFIER.zip`` (for the website) of each plugin.

    ``run.json`` beside them notes where the weights lie on this machine. All of them are made in a folder beside ``output``
    and then moved there. The same plugin gives the same bytes.

    Raises
    ------
    ValueError
        Where ``output`` holds anything but plugins that were written so.
    OSError
        Where it cannot be written, or another process writes there.
    """
    output = Path(os.path.realpath(output))
    with results.locked(output):
        results.recover(output)
        results.claim(output, KIND, {})
        temporary = results.beside(output, results.NEW)
        try:
            new, old = temporary / "new", temporary / "old"
            for path in (new, old):
                path.mkdir()
            io.check_writable(new)
            made = [_write(plugin, new) for plugin in plugins]
            weights = {p.identity.identifier: None if p.weights is None else str(p.weights.resolve()) for p in plugins}
            record = {"kind": KIND, "configuration": {}, "weights": read_record(output) | weights, **_about()}
            output.mkdir(exist_ok=True)
            io.write_json(output / results.RECORD, record)
            for folder, archive in made:
                if (output / folder.name).exists():
                    (output / folder.name).rename(old / folder.name)
                shutil.move(folder, output / folder.name)
                archive.replace(output / archive.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [(output / folder.name, output / archive.name) for folder, archive in made]


def _about() -> dict[str, Any]:
    return {"command": results.command(), "commit": results.commit(), "versions": results.versions()}


def _write(plugin: Plugin, output: Path) -> tuple[Path, Path]:
    """The folder and the ZIP of one plugin in ``output``, an empty folder."""
    name, content = plugin.identity.identifier, plugin_files(plugin)
    for file, text in content.items():
        path = output / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_zip(output / f"{name}.zip", name, content)
    return output / name, output / f"{name}.zip"


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


def read_record(output: Path) -> dict[str, str | None]:
    """Identifier -> path of its weights (None: its own code makes them), as ``write_plugins`` left it; empty where it did not."""
    path = output / results.RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dict(record["weights"]) if record.get("kind") == KIND else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it, and name the weights where the plugin is checked"
        ) from error


_INIT = """\
from brainscore_vision import model_registry

from .model import get_model

model_registry['{identifier}'] = lambda: get_model('{identifier}')
"""

_MODEL = '''\
"""{title}.

Written by `python -m cnnf_brain.submit`. The identifier follows from the identity below: change neither by hand. The folder
cnnf_brain beside this file is the part of that package which the model needs; no other is installed or used.
"""

from pathlib import Path

from .cnnf_brain.brainscore import load_plugin

IDENTITY = {identity}

BIBTEX = {bibtex}


def get_model(identifier):
    """The model that Brain-Score scores; its weights are fetched, and their SHA-256 checked, when it is loaded."""
    return load_plugin(IDENTITY, identifier, Path(__file__).parent / '{own}')


def get_bibtex(model_identifier):
    """The reference for the leaderboard."""
    return BIBTEX
'''

_TEST = """\
import json
from pathlib import Path

import pytest
from brainscore_vision import model_registry

from .cnnf_brain.brainscore.commitment import local_file
from .cnnf_brain.brainscore.identity import Identity
from .model import IDENTITY, get_bibtex, get_model

IDENTIFIER = '{identifier}'


def test_the_identifier_is_that_of_the_identity():
    assert IDENTIFIER in model_registry
    Identity.from_dict(IDENTITY).check_identifier(IDENTIFIER)


def test_the_software_in_the_plugin_makes_its_features():
    Identity.from_dict(IDENTITY).check_features()


def test_the_map_names_the_layers_of_the_identity():
    path = Path(__file__).parent / 'region_layer_map' / (IDENTIFIER + '.json')
    assert json.loads(path.read_text()) == IDENTITY['regions']


def test_bibtex():
    assert get_bibtex(IDENTIFIER).strip().startswith('@')


def test_regions_can_be_recorded_from():
    weights = Identity.from_dict(IDENTITY).weights
    if weights.file and not local_file(weights).is_file():
        pytest.skip('needs the weights, which are not on this machine; they are not fetched for a test')
    model = get_model(IDENTIFIER)
    assert model.identifier == IDENTIFIER
    for region in IDENTITY['regions']:
        model.start_recording(region, time_bins=[(70, 170)])
"""
