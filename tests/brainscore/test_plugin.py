"""What is written for Brain-Score: folders and ZIPs; and what a plugin does when it is loaded."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brainscore.toy_networks import REGIONS

from cnnf_brain import io
from cnnf_brain.model.zoo import shipped_weights

STORED = {"stored": "user_12/small.safetensors", "version_id": "v-1"}


@pytest.fixture(scope="module")
def plugin() -> Any:
    from cnnf_brain.brainscore import plugin

    return plugin


@pytest.fixture(scope="module")
def commitment() -> Any:
    from cnnf_brain.brainscore import commitment

    return commitment


@pytest.fixture(scope="module")
def ask(asked: Callable[..., Any]) -> Callable[..., Any]:
    """The plugin of the shipped small CNN-F, or what is asked for in its place; each is prepared once."""
    from cnnf_brain.brainscore.plugin import identify

    made = {}

    def ask(**given: Any) -> Any:
        key = repr(given)
        if key not in made:
            made[key] = identify(asked(**given))
        return made[key]

    return ask


def read_submission(path: Path) -> Any:
    from cnnf_brain.brainscore.check import read_submission

    return read_submission(path)


def literal(folder: Path) -> dict[str, Any]:
    """IDENTITY of a plugin's model.py."""
    tree = ast.parse((folder / "model.py").read_text())
    (found,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "IDENTITY")  # type: ignore[attr-defined]
    return ast.literal_eval(found)


def test_the_folder_and_the_zip(plugin: Any, ask: Callable[..., Any], tmp_path: Path) -> None:
    asked = ask(place=STORED)
    identity = asked.identity
    ((folder, archive),) = plugin.write_plugins([asked], tmp_path / "out")
    name = identity.identifier
    inside = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    beside = [one for one in inside if not one.startswith("cnnf_brain/")]
    assert beside == ["__init__.py", "model.py", f"region_layer_map/{name}.json", "requirements.txt", "test.py"]
    assert {"cnnf_brain/LICENSE", "cnnf_brain/brainscore/commitment.py", "cnnf_brain/model/cnnf.py"} < set(inside)
    assert f"model_registry['{name}'] = lambda: get_model('{name}')\n" in (folder / "__init__.py").read_text()
    assert json.loads((folder / f"region_layer_map/{name}.json").read_text()) == dict(identity.regions)
    assert literal(folder) == json.loads(json.dumps(identity.as_dict()))
    assert re.fullmatch(r"safetensors==[\d.]+\n", (folder / "requirements.txt").read_text())
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        content = {entry: opened.read(entry) for entry in names if not entry.endswith("/")}
    assert {f"{name}/", f"{name}/models/", f"{name}/models/{name}/"} <= set(names)
    assert names[0] == f"{name}/"
    assert content == {f"{name}/models/{name}/{one}": (folder / one).read_bytes() for one in inside}
    before = archive.read_bytes()
    plugin.write_plugins([asked], tmp_path / "out")
    assert archive.read_bytes() == before
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    assert read_submission(archive).identity == literal(folder)


def test_plugins_gather_in_a_folder(plugin: Any, ask: Callable[..., Any], tmp_path: Path) -> None:
    """run.json knows the weights of all of them; what another command wrote is left alone."""
    first, second = ask(), ask(iterations=1)
    plugin.write_plugins([first], tmp_path / "out")
    plugin.write_plugins([second], tmp_path / "out")
    names = {first.identity.identifier, second.identity.identifier}
    assert {path.stem for path in (tmp_path / "out").glob("*.zip")} == names
    assert plugin.read_record(tmp_path / "out") == dict.fromkeys(names, str(Path(shipped_weights(True)).resolve()))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "compare", "configuration": {}}')
    with pytest.raises(ValueError, match="holds the results of compare, not of submit; choose another output folder"):
        plugin.write_plugins([first], tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not the results of this command"):
        plugin.write_plugins([first], tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_the_record_of_where_weights_lie(plugin: Any, tmp_path: Path) -> None:
    assert plugin.read_record(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"kind": "submit"}')
    with pytest.raises(ValueError, match=r"run.json is damaged .*name the weights"):
        plugin.read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"kind": "compare", "weights": 1}')
    assert plugin.read_record(tmp_path) == {}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is damaged .*name the weights"):
        plugin.read_record(tmp_path)


def test_the_reference_is_as_given(plugin: Any, ask: Callable[..., Any], tmp_path: Path) -> None:
    bibtex = '@article{a,\n  title = {A "quoted" {\\\'e} title \\"""},\n}'
    ((folder, _),) = plugin.write_plugins([ask(bibtex=bibtex)], tmp_path / "out")
    tree = ast.parse((folder / "model.py").read_text())
    (found,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "BIBTEX")  # type: ignore[attr-defined]
    assert ast.literal_eval(found) == bibtex


def test_an_identity_is_read_and_not_run(plugin: Any, ask: Callable[..., Any], tmp_path: Path) -> None:
    ((folder, _),) = plugin.write_plugins([ask()], tmp_path / "out")
    marker = tmp_path / "was run"
    code = f"open({str(marker)!r}, 'w')\nIDENTITY = {{'a': 1}}\n"
    other = tmp_path / "other.zip"
    plugin.write_zip(other, folder.name, {"__init__.py": "", "model.py": code})
    assert read_submission(other).identity == {"a": 1}
    assert not marker.exists()
    for code in ("IDENTITY = make()\n", "", "IDENTITY = (\n"):
        plugin.write_zip(other, folder.name, {"__init__.py": "", "model.py": code})
        with pytest.raises(ValueError, match=r"model.py holds no IDENTITY as .* writes it"):
            _ = read_submission(other).identity


@pytest.fixture
def stored(ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An identity whose weights lie where Brain-Score's loader puts them, and that file."""
    monkeypatch.setenv("BRAINSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "cache"))
    identity = ask(place=STORED).identity
    path = tmp_path / "home" / "brainscore-vision" / "models" / STORED["stored"]
    path.parent.mkdir(parents=True)
    shutil.copy(shipped_weights(True), path)
    return identity, path


def test_a_plugin_loads_its_weights(commitment: Any, stored: Any) -> None:
    identity, _ = stored
    model = commitment.load_plugin(json.loads(json.dumps(identity.as_dict())), identity.identifier)
    assert model.identifier == identity.identifier
    assert dict(model.layer_model.region_layer_map) == dict(identity.regions)
    assert model.activations_model.image_size == 28
    assert model.visual_degrees() == 8


def test_weights_with_another_hash_are_not_used(commitment: Any, stored: Any) -> None:
    identity, path = stored
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        ValueError, match=rf"weights {re.escape(str(path))}: their SHA-256 is .*, the plugin's are .*remove the file"
    ):
        commitment.load_plugin(identity.as_dict(), identity.identifier)


def test_a_network_that_is_down(commitment: Any, stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brain-Score's storage cannot be reached: every address leads nowhere."""
    identity, path = stored
    path.unlink()
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        OSError,
        match=r"user_12/small.safetensors \(version v-1\) in Brain-Score's storage cannot be loaded.*place the file at",
    ):
        commitment.load_plugin(identity.as_dict(), identity.identifier)
    assert not path.exists()


def test_weights_from_a_hub(commitment: Any, ask: Callable[..., Any], hub: tuple[Path, str], cache: Path) -> None:
    folder, address = hub
    shutil.copy(shipped_weights(True), folder / "small.safetensors")
    identity = ask(place={"url": f"{address}/small.safetensors"}).identity
    model = commitment.load_plugin(identity.as_dict(), identity.identifier)
    assert model.identifier == identity.identifier
    (kept,) = (cache / "weights").iterdir()
    assert io.sha256(kept) == identity.weights.sha256
    (folder / "small.safetensors").unlink()  # not fetched twice
    assert identity.weights.fetch() == kept


def test_a_hub_that_gives_another_file_or_none(
    commitment: Any, ask: Callable[..., Any], hub: tuple[Path, str], cache: Path
) -> None:
    folder, address = hub
    (folder / "small.safetensors").write_bytes(b"other weights")
    identity = ask(place={"url": f"{address}/small.safetensors"}).identity
    with pytest.raises(OSError, match=r"cannot be loaded, or is another file \(invalid hash value"):
        identity.weights.fetch()
    (folder / "small.safetensors").unlink()
    with pytest.raises(OSError, match=r"http://127.0.0.1.* cannot be loaded.*404"):
        identity.weights.fetch()


def test_a_draft_names_no_place(commitment: Any, ask: Callable[..., Any], cache: Path) -> None:
    identity = ask().identity
    assert identity.weights.draft
    with pytest.raises(OSError, match=r"a draft that names no place .*write the plugin anew with their place"):
        commitment.load_plugin(identity.as_dict(), identity.identifier)


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 1},
        {"preprocessing": {"size": 32, "mean": [0.5], "std": [0.5], "resize": None}},
        {"regions": {**REGIONS, "IT": "pool2@2"}},
    ],
)
def test_a_plugin_that_would_write_into_another_versions_cache(commitment: Any, stored: Any, change: Any) -> None:
    """Its settings were changed by hand and its identifier was not."""
    identity, _ = stored
    content = {**identity.as_dict(), **change}
    if "iterations" in change:
        content["time_bins"] = content["time_bins"][:2]
    with pytest.raises(
        ValueError, match=r"stands for other weights, settings or software than the plugin has.*mix its activations"
    ):
        commitment.load_plugin(content, identity.identifier)
    with pytest.raises(ValueError, match=f"identifier 'another' stands for .*{identity.identifier!r}"):
        commitment.load_plugin(identity.as_dict(), "another")


def test_a_plugin_of_other_software(commitment: Any, stored: Any) -> None:
    identity, _ = stored
    other = dataclasses.replace(identity, features=999)
    with pytest.raises(ValueError, match=r"written for features of version 999, and the software in it makes version \d"):
        commitment.load_plugin(other.as_dict(), other.identifier)


def test_an_identity_that_is_not_whole(commitment: Any, stored: Any) -> None:
    identity, _ = stored
    content = identity.as_dict()
    del content["readout"]
    with pytest.raises(ValueError, match="lacks, or has beside what it should: readout; write the plugin anew"):
        commitment.load_plugin(content, identity.identifier)
