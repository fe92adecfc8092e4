"""What is written for Brain-Score: identities, identifiers, folders, ZIPs; and what a plugin does when it is loaded."""

from __future__ import annotations

import ast
import dataclasses
import functools
import http.server
import json
import re
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cnnf_brain import files
from cnnf_brain.model.nets import sequential
from cnnf_brain.networks import shipped_weights

pytestmark = [
    pytest.mark.brainscore,
    pytest.mark.filterwarnings("ignore:xarray subclass Score should explicitly define __slots__:FutureWarning"),
]

REGIONS = {"V1": "conv1", "V2": "pool2@1", "V4": "pool2", "IT": "relu3"}
STORED = {"stored": "user_12/small.safetensors", "version_id": "v-1"}


@pytest.fixture(scope="module")
def plugin():
    from cnnf_brain.brainscore import plugin

    return plugin


@pytest.fixture(scope="module")
def commitment():
    from cnnf_brain.brainscore import commitment

    return commitment


@pytest.fixture
def ask(plugin):
    """A request for a plugin of the shipped small pair."""

    def ask(**given):
        common = {"weights": Path(shipped_weights(True)), "model": "small", "regions": REGIONS, "neural_only": True}
        return plugin.Request(**{**common, **given})

    return ask


@pytest.fixture(scope="module")
def headless(tmp_path_factory) -> Path:
    """AlexNet's convolutions alone, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("headless") / "alexnet.safetensors"
    state = sequential("alexnet", 10).state_dict()
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items() if k.startswith("features.")}, path)
    return path


def literal(folder: Path) -> dict:
    """IDENTITY of a plugin's model.py."""
    tree = ast.parse((folder / "model.py").read_text())
    (found,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "IDENTITY")
    return ast.literal_eval(found)


def test_identifiers_carry_the_weights_and_the_iterations(plugin, ask):
    sha = files.sha256(Path(shipped_weights(True)))
    cnnf = plugin.identify(ask())
    cnn = plugin.identify(plugin.control_of(ask()))
    assert re.fullmatch(rf"small_CNNF_{sha[:8]}_2it_[0-9a-f]{{8}}", cnnf.identifier)
    assert re.fullmatch(rf"small_CNN_{sha[:8]}_0it_[0-9a-f]{{8}}", cnn.identifier)
    assert cnnf.regions == {"V1": "conv1@2", "V2": "pool2@1", "V4": "pool2@2", "IT": "relu3@2"}
    assert cnn.regions == {"V1": "conv1@0", "V2": "pool2@0", "V4": "pool2@0", "IT": "relu3@0"}
    assert cnnf.time_bins == ((70, 120), (120, 170), (170, 220))
    on_card = {"target": "input", "step": 0.1, "match_norm": True, "ada_relu": "signed", "tolerance": None}
    assert on_card.items() <= cnnf.feedback.items()
    assert cnn.feedback == {}
    assert cnnf.weights.sha256 == sha


def test_identifiers_differ_wherever_the_model_does(plugin, ask):
    identities = [
        plugin.identify(ask()),
        plugin.identify(ask(iterations=1)),
        plugin.identify(ask(feedback={"step": 0.2})),
        plugin.identify(ask(image_size=28, regions={**REGIONS, "IT": "relu3@1"})),
        plugin.identify(ask(time_bins=((50, 100), (100, 150), (150, 200)))),
        plugin.identify(ask(name="mine")),
        plugin.identify(ask(weights=Path(shipped_weights(False)), iterations=2)),
        dataclasses.replace(plugin.identify(ask()), sources="0" * 64),
    ]
    assert len({identity.identifier for identity in identities}) == len(identities)
    moved = plugin.identify(ask(place=STORED))
    assert moved.identifier == identities[0].identifier  # the same weights in another place
    assert moved != identities[0]


def test_the_card_says_what_is_not_asked_for(plugin, tmp_path):
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in sequential("alexnet", 10).state_dict().items() if k.startswith("features.")}
    card = {"arch": "alexnet", "image_size": 96, "feedback": {"iterations": 3, "target": "features.0", "step": 0.5}}
    path = tmp_path / "trained.safetensors"
    safetensors.torch.save_file(state, path, {"card": json.dumps(card)})
    regions = {"V1": "features.2@1"}
    found = plugin.identify(plugin.Request(weights=path, neural_only=True, regions=regions))
    assert (found.model, found.iterations, found.image_size) == ("alexnet", 3, 96)
    assert (found.feedback["target"], found.feedback["step"]) == ("features.0", 0.5)
    # Brain-Score's own layers, at the last iteration
    assert found.regions == {"V1": "features.2@1", "V2": "features.7@3", "V4": "features.7@3", "IT": "features.12@3"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "cnn-f"}, r"identifier 'cnn-f_CNNF' may hold letters, digits and _ alone.* no hyphens.*try 'cnn_f_CNNF'"),
        ({"name": "2nd"}, r"'2nd_CNNF'.*begins with a letter.*try 'model_2nd_CNNF'"),
        ({"regions": {"V4": "pool2", "IT": "relu3"}}, r"no layer is named for V1, V2; .*--regions V1=LAYER V2=LAYER"),
        ({"regions": {**REGIONS, "IT": "relu9"}}, r"layer 'relu9' is not known; did you mean 'relu3'"),
        ({"regions": {**REGIONS, "IT": "relu3@3"}}, r"relu3@3: iteration 3 is not run; the network runs 2"),
        ({"regions": {**REGIONS, "PIT": "relu3"}}, r"region 'PIT' is not known in Brain-Score"),
        ({"time_bins": ((70, 120),)}, r"1 time bins for iterations 0 to 2; expected 3"),
        ({"neural_only": False}, r"small CNN-F .* has 10 classes: .*1000 logits.*--neural-only"),
        ({"place": {"stored": "user_1/a"}}, r"needs both its path \(user_1/a\) and the version id .* \(not given\)"),
        ({"place": {"url": "here"}}, r"'here' is no address; expected https://"),
        ({"place": {**STORED, "url": "https://a.b/c"}}, r"a place in Brain-Score's storage and a url are given"),
        ({"weights": Path("no.safetensors")}, r"weights no.safetensors: no such file"),
        ({"model": "torchvision:resnet18"}, r"torchvision:resnet18: has no feedback"),
        ({"model": "vgg17"}, r"model 'vgg17' is not known; did you mean 'vgg1"),
    ],
)
def test_what_no_plugin_is_made_of(plugin, ask, given, message):
    with pytest.raises((ValueError, OSError), match=message):
        plugin.identify(ask(**given))


def test_a_headless_network_takes_no_behaviour(plugin, headless):
    request = plugin.Request(weights=headless, model="alexnet")
    with pytest.raises(ValueError, match="has no classes: Brain-Score's behavioural benchmarks read the 1000 logits"):
        plugin.identify(request)


def test_an_identifier_that_is_taken(plugin, ask):
    from cnnf_brain.brainscore.rules import taken

    assert taken("vgg_16") == "vgg_16"
    assert taken("CORnet-S") == "cornet_s"  # registered under another name than its folder's
    assert taken("vgg_1") == ""
    assert taken(plugin.identify(ask()).identifier) == ""


def test_an_identifier_that_a_shipped_model_has(plugin, ask, tmp_path, monkeypatch):
    """As if brainscore-vision shipped this very plugin, under a folder of another name; a link is the user's own."""
    from cnnf_brain.brainscore import rules

    folder, _ = plugin.write_plugin(plugin.identify(ask()), tmp_path / "written")
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setattr(rules, "models_folder", lambda: models)
    (models / folder.name).symlink_to(folder)
    assert plugin.identify(ask()).identifier == folder.name
    shutil.copytree(folder, models / "shipped")
    with pytest.raises(
        ValueError, match=f"identifier '{folder.name}' is taken: brainscore-vision ships it in models/shipped"
    ):
        plugin.identify(ask())


def test_the_folder_and_the_zip(plugin, ask, tmp_path):
    identity = plugin.identify(ask(place=STORED))
    folder, archive = plugin.write_plugin(identity, tmp_path)
    name = identity.identifier
    inside = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert inside == ["__init__.py", "model.py", f"region_layer_map/{name}.json", "requirements.txt", "test.py"]
    assert f"model_registry['{name}'] = lambda: get_model('{name}')\n" in (folder / "__init__.py").read_text()
    assert json.loads((folder / f"region_layer_map/{name}.json").read_text()) == dict(identity.regions)
    assert literal(folder) == json.loads(json.dumps(identity.as_dict()))
    assert (folder / "requirements.txt").read_text().startswith("cnnf-brain==")
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        content = {entry: opened.read(entry) for entry in names if not entry.endswith("/")}
    assert {f"{name}/", f"{name}/models/", f"{name}/models/{name}/"} <= set(names)
    assert names[0] == f"{name}/"
    assert content == {f"{name}/models/{name}/{one}": (folder / one).read_bytes() for one in inside}
    before = archive.read_bytes()
    plugin.write_plugin(identity, tmp_path)
    assert archive.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_requirements_and_reference_are_as_given(plugin, ask, tmp_path):
    identity = plugin.identify(ask())
    bibtex = '@article{a,\n  title = {A "quoted" {\\\'e} title \\"""},\n}'
    folder, _ = plugin.write_plugin(identity, tmp_path, requires="cnnf-brain @ git+https://a.b/c@1", bibtex=bibtex)
    assert (folder / "requirements.txt").read_text() == "cnnf-brain @ git+https://a.b/c@1\n"
    tree = ast.parse((folder / "model.py").read_text())
    (found,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "BIBTEX")
    assert ast.literal_eval(found) == bibtex


@pytest.fixture
def stored(plugin, ask, tmp_path, monkeypatch):
    """An identity whose weights lie where Brain-Score's loader puts them, and that file."""
    monkeypatch.setenv("BRAINSCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CNNF_BRAIN_CACHE", str(tmp_path / "cache"))
    identity = plugin.identify(ask(place=STORED))
    path = tmp_path / "home" / "brainscore-vision" / "models" / STORED["stored"]
    path.parent.mkdir(parents=True)
    shutil.copy(shipped_weights(True), path)
    return identity, path


def test_a_plugin_loads_its_weights(commitment, stored):
    identity, _ = stored
    model = commitment.load_plugin(json.loads(json.dumps(identity.as_dict())), identity.identifier)
    assert model.identifier == identity.identifier
    assert dict(model.layer_model.region_layer_map) == dict(identity.regions)
    assert model.activations_model.image_size == 28
    assert model.visual_degrees() == 8


def test_weights_with_another_hash_are_not_used(commitment, stored):
    identity, path = stored
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(
        ValueError, match=rf"weights {re.escape(str(path))}: their SHA-256 is .*, the plugin's are .*remove the file"
    ):
        commitment.load_plugin(identity.as_dict(), identity.identifier)


def test_a_network_that_is_down(commitment, stored, monkeypatch):
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
        match=r"user_12/small.safetensors \(version v-1\) cannot be loaded from Brain-Score's storage .*place the file at",
    ):
        commitment.load_plugin(identity.as_dict(), identity.identifier)
    assert not path.exists()


@pytest.fixture
def hub(tmp_path):
    """A folder behind a server on this machine, and its address."""
    folder = tmp_path / "hub"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_weights_from_a_hub(plugin, commitment, ask, hub, cache):
    folder, address = hub
    shutil.copy(shipped_weights(True), folder / "small.safetensors")
    identity = plugin.identify(ask(place={"url": f"{address}/small.safetensors"}))
    model = commitment.load_plugin(identity.as_dict(), identity.identifier)
    assert model.identifier == identity.identifier
    (kept,) = (cache / "weights").iterdir()
    assert files.sha256(kept) == identity.weights.sha256
    (folder / "small.safetensors").unlink()  # not fetched twice
    assert commitment.weights_file(identity.weights) == kept


def test_a_hub_that_gives_another_file_or_none(plugin, commitment, ask, hub, cache):
    folder, address = hub
    (folder / "small.safetensors").write_bytes(b"other weights")
    identity = plugin.identify(ask(place={"url": f"{address}/small.safetensors"}))
    with pytest.raises(OSError, match="the download failed or is not the file that was published"):
        commitment.weights_file(identity.weights)
    (folder / "small.safetensors").unlink()
    with pytest.raises(OSError, match=r"cannot download http://127.0.0.1.* answers 404"):
        commitment.weights_file(identity.weights)


def test_a_draft_names_no_place(plugin, commitment, ask, cache):
    identity = plugin.identify(ask())
    assert identity.weights.draft
    with pytest.raises(OSError, match=r"a draft that names no place .*--stored PATH VERSION_ID or --url URL"):
        commitment.load_plugin(identity.as_dict(), identity.identifier)


@pytest.mark.parametrize("change", [{"iterations": 1}, {"image_size": 32}, {"regions": {**REGIONS, "IT": "pool2@2"}}])
def test_a_plugin_that_would_write_into_another_versions_cache(commitment, stored, change):
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


def test_a_plugin_of_other_software(commitment, stored):
    identity, _ = stored
    other = dataclasses.replace(identity, sources="f" * 64, version="0.0.1")
    with pytest.raises(
        ValueError, match=r"written with cnnf-brain 0.0.1 \(sources ffffffff\), installed is .*cache of that version"
    ):
        commitment.load_plugin(other.as_dict(), other.identifier)


def test_an_identity_that_is_not_whole(commitment, stored):
    identity, _ = stored
    content = identity.as_dict()
    del content["readout"]
    with pytest.raises(ValueError, match="lacks, or has beside what it should: readout; write the plugin anew"):
        commitment.load_plugin(content, identity.identifier)


def test_the_record_of_where_weights_lie(plugin, tmp_path):
    assert plugin.read_record(tmp_path) == {}
    plugin.write_record(tmp_path, {"a": tmp_path / "a.pt"})
    plugin.write_record(tmp_path, {"b": tmp_path / "b.pt"})
    assert plugin.read_record(tmp_path) == {"a": str(tmp_path / "a.pt"), "b": str(tmp_path / "b.pt")}
    (tmp_path / plugin.RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"submission.json is damaged .*--weights FILE"):
        plugin.read_record(tmp_path)
