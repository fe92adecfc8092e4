"""What is asked for -> what a plugin is: identities and their identifiers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from brainscore.toy_networks import REGIONS

from cnnf_brain import io
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.zoo import sequential, shipped_weights
from cnnf_brain.networks import load_network

STORED = {"stored": "user_12/small.safetensors", "version_id": "v-1"}


@pytest.fixture(scope="module")
def plugin() -> Any:
    from cnnf_brain.brainscore import plugin

    return plugin


@pytest.fixture(scope="module")
def identify(plugin: Any) -> Callable[..., Any]:
    """Request -> identity."""
    return lambda request: plugin.identify(request).identity


@pytest.fixture(scope="module")
def ask(asked: Callable[..., Any]) -> Any:
    """A request for a plugin of the shipped small pair."""
    return asked


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's convolutions alone, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("headless") / "alexnet.safetensors"
    state = sequential("alexnet", 10).state_dict()
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items() if k.startswith("features.")}, path)
    return path


def test_identifiers_carry_the_weights_and_the_iterations(plugin: Any, identify: Callable[..., Any], ask: Any) -> None:
    sha = io.sha256(Path(shipped_weights(True)))
    cnnf = identify(ask())
    cnn = identify(plugin.control_of(ask()))
    assert re.fullmatch(rf"small_CNNF_{sha[:8]}_2it_[0-9a-f]{{8}}", cnnf.identifier)
    assert re.fullmatch(rf"small_CNN_{sha[:8]}_0it_[0-9a-f]{{8}}", cnn.identifier)
    assert cnnf.regions == {"V1": "conv1@2", "V2": "pool2@1", "V4": "pool2@2", "IT": "relu3@2"}
    assert cnn.regions == {"V1": "conv1@0", "V2": "pool2@0", "V4": "pool2@0", "IT": "relu3@0"}
    assert cnnf.time_bins == ((70, 120), (120, 170), (170, 220))
    on_card = {"target": "input", "step": 0.1, "match_norm": True, "ada_relu": "signed", "tolerance": None}
    assert on_card.items() <= cnnf.feedback.items()
    assert cnn.feedback == {}
    assert cnnf.weights.sha256 == sha


def test_identifiers_differ_wherever_the_model_does(plugin: Any, identify: Callable[..., Any], ask: Any) -> None:
    identities = [
        identify(ask()),
        identify(ask(iterations=1)),
        identify(ask(feedback={"step": 0.2})),
        identify(ask(image_size=28, regions={**REGIONS, "IT": "relu3@1"})),
        identify(ask(time_bins=((50, 100), (100, 150), (150, 200)))),
        identify(ask(name="mine")),
        identify(ask(weights=Path(shipped_weights(False)), iterations=2)),
        dataclasses.replace(identify(ask()), features=2),
        dataclasses.replace(identify(ask()), code="0" * 64),
    ]
    assert len({identity.identifier for identity in identities}) == len(identities)
    moved = identify(ask(place=STORED))
    assert moved.identifier == identities[0].identifier  # the same weights in another place
    assert moved != identities[0]


def test_the_card_says_what_is_not_asked_for(plugin: Any, identify: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {k: v.contiguous() for k, v in sequential("alexnet", 10).state_dict().items() if k.startswith("features.")}
    card = {"arch": "alexnet", "image_size": 96, "feedback": {"iterations": 3, "target": "features.0", "step": 0.5}}
    path = tmp_path / "trained.safetensors"
    safetensors.torch.save_file(state, path, {"card": json.dumps(card)})
    regions = {"V1": "features.2@1"}
    found = identify(plugin.Request(weights=path, neural_only=True, regions=regions))
    assert (found.model, found.iterations, found.preprocessing["size"]) == ("alexnet", 3, 96)
    assert (found.feedback["target"], found.feedback["step"]) == ("features.0", 0.5)
    # Brain-Score's own layers, at the last iteration
    assert found.regions == {"V1": "features.2@1", "V2": "features.7@3", "V4": "features.7@3", "IT": "features.12@3"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "cnn-f"}, r"identifier 'cnn-f' may hold letters, digits and _ alone.* no hyphens.*try 'cnn_f'$"),
        ({"name": "2nd"}, r"'2nd'.*begins with a letter.*try 'model_2nd'$"),
        ({"image_size": 0}, "image size is 0, expected a whole number of pixels"),
        ({"regions": {**REGIONS, "IT": "relu9"}}, r"layer 'relu9' is not known; did you mean 'relu3'"),
        ({"regions": {**REGIONS, "IT": "relu3@3"}}, r"relu3@3: iteration 3 is not run; the network runs 2"),
        ({"regions": {**REGIONS, "PIT": "relu3"}}, r"region 'PIT' is not known in Brain-Score"),
        ({"time_bins": ((70, 120),)}, r"1 time bins for iterations 0 to 2; expected 3"),
        ({"neural_only": False}, r"small CNN-F .* has 10 classes: .*1000 logits.*neural_only"),
        ({"place": {"stored": "user_1/a"}}, r"needs both its path \(user_1/a\) and the version id .* \(not given\)"),
        ({"place": {"url": "here"}}, r"'here' is no address; expected https://"),
        ({"place": {**STORED, "url": "https://a.b/c"}}, r"a place in Brain-Score's storage and a url are given"),
        ({"weights": Path("no.safetensors")}, r"weights no.safetensors: no such file"),
        ({"model": "torchvision:resnet18", "iterations": 2}, r"torchvision:resnet18: has no feedback"),
        ({"weights": "none"}, r"random weights cannot be loaded by Brain-Score; save them in a file"),
        (
            {"iterations": 0, "feedback": {"step": 0.5}},
            r"settings of the feedback are given \(step\), and it runs no feedback",
        ),
        ({"model": "vgg17"}, r"model 'vgg17' is not known; did you mean 'vgg1"),
    ],
)
def test_what_no_plugin_is_made_of(plugin: Any, identify: Callable[..., Any], ask: Any, given: Any, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        identify(ask(**given))


def test_v1_and_v2_may_be_left_out_of_neural_benchmarks_alone(
    plugin: Any, identify: Callable[..., Any], ask: Any, published: Path
) -> None:
    assert list(identify(ask(regions={})).regions) == ["V4", "IT"]
    two = {region: SQUEEZE[region] for region in ("V4", "IT")}
    with pytest.raises(ValueError, match=r"no layer is named for V1, V2; .*V4, IT are enough with neural_only"):
        identify(plugin.Request(model="torchvision:squeezenet1_1", regions=two))


def test_a_region_that_is_left_out_is_not_recorded_from(plugin: Any, ask: Any) -> None:
    from cnnf_brain.brainscore.commitment import commit

    identity = plugin.identify(ask(regions={})).identity
    model = commit(identity, load_network("small", shipped_weights(True), device="cpu"))
    model.start_recording("IT", time_bins=[(70, 170)])
    with pytest.raises(NotImplementedError, match="has no layer for V1; it can be recorded from in V4, IT"):
        model.start_recording("V1", time_bins=[(70, 170)])


def test_feedback_that_amplifies_rounding_is_no_reason_to_refuse(
    plugin: Any, identify: Callable[..., Any], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i is image i's in the first pass; a later one of a VGG-16 may differ by percents between batch sizes."""
    from cnnf_brain import activations

    features = activations.features

    def rounded(network: Any, batch: Any, layers: Any) -> Any:  # 5 percent off wherever the batch is a smaller one
        off = 1.0 if len(batch) == activations.PROBED else 1.05
        return {at: rows * (off if at.iteration else 1) for at, rows in features(network, batch, layers).items()}

    monkeypatch.setattr(activations, "features", rounded)
    assert identify(ask()).regions["IT"] == "relu3@2"


def test_the_network_runs_on_the_device(plugin: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    load = plugin.load_network

    def noted(*args: Any, **given: Any) -> Any:
        seen.append(str(given["device"]))
        return load(*args, **given)

    monkeypatch.setattr(plugin, "load_network", noted)
    plugin.identify(ask())
    plugin.identify(ask(device="cpu"))
    assert seen == ["auto", "cpu"]
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        plugin.identify(ask(device="gpu"))


def test_a_headless_network_takes_no_behaviour(plugin: Any, identify: Callable[..., Any], headless: Path) -> None:
    request = plugin.Request(weights=headless, model="alexnet", iterations=2)
    with pytest.raises(ValueError, match="has no classes: Brain-Score's behavioural benchmarks read the 1000 logits"):
        identify(request)


def test_an_identifier_that_is_taken(plugin: Any, identify: Callable[..., Any], ask: Any) -> None:
    from cnnf_brain.brainscore.check import taken

    assert taken("vgg_16") == "vgg_16"
    assert taken("CORnet-S") == "cornet_s"  # registered under another name than its folder's
    assert taken("vgg_1") == ""
    assert taken(identify(ask()).identifier) == ""


def test_an_identifier_that_a_shipped_model_has(
    plugin: Any, identify: Callable[..., Any], ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if brainscore-vision shipped this very plugin, under a folder of another name; a link is the user's own."""
    from cnnf_brain.brainscore import check

    ((folder, _),) = plugin.write_plugins([plugin.identify(ask())], tmp_path / "written")
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setattr(check, "models_folder", lambda: models)
    (models / folder.name).symlink_to(folder)
    assert identify(ask()).identifier == folder.name
    shutil.copytree(folder, models / "shipped")
    with pytest.raises(
        ValueError, match=f"identifier '{folder.name}' is taken: brainscore-vision ships it in models/shipped"
    ):
        identify(ask())


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's SqueezeNet of random weights, in torch's cache under the name of the published ones."""
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return path


SQUEEZE = {"V1": "features.2", "V2": "features.5", "V4": "features.8", "IT": "features.12"}


def test_a_network_of_torchvision(plugin: Any, published: Path) -> None:
    """Its published weights have a place of their own, and how it was trained to see images goes into its identity."""
    model = "torchvision:squeezenet1_1"
    made = plugin.identify(plugin.Request(model=model, regions=SQUEEZE))
    found = made.identity
    assert made.weights == published
    assert re.fullmatch(rf"squeezenet1_1_CNN_{io.sha256(published)[:8]}_0it_[0-9a-f]{{8}}", found.identifier)
    assert found.weights.url.startswith("https://")
    assert found.weights.url.endswith("/squeezenet1_1-b8a52dc0.pth")
    assert not found.weights.draft
    assert (found.iterations, found.time_bins, found.readout) == (0, ((70, 120),), "logits")
    assert found.regions["IT"] == "features.12@0"
    expected = load_network(model, str(published), iterations=0, device="cpu")
    loaded = found.load(published)
    assert loaded.preprocessing == expected.preprocessing
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.module(x), expected.module(x))
    smaller = plugin.identify(plugin.Request(model=model, regions=SQUEEZE, image_size=128)).identity
    assert smaller.preprocessing["size"] == 128
    assert smaller.identifier != found.identifier


def test_a_network_of_torchvision_with_weights_of_ones_own(plugin: Any, published: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(published.read_bytes())
    asked = plugin.Request(tmp_path / "mine.pth", model="torchvision:squeezenet1_1", regions=SQUEEZE, iterations=0)
    found = plugin.identify(asked).identity
    assert found.weights.draft
    assert found.weights.file == "mine.pth"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with networks of the user's own."""
    path = tmp_path / "nets.py"
    path.write_text(tiny.FILE)
    return path


MINE = {"V1": "first", "V2": "first", "V4": "act", "IT": "second"}


def test_a_network_of_ones_own(plugin: Any, own: Path) -> None:
    made = plugin.identify(plugin.Request(model=f"{own}:net", regions=MINE, neural_only=True))
    found = made.identity
    assert (found.model, found.iterations) == ("nets.py:net", 0)
    assert found.name == "net_CNN"
    assert found.weights.made
    assert not found.weights.draft
    assert made.weights is None
    assert Preprocessing(**found.preprocessing) == Preprocessing(16)
    assert found.load(None, own.parent).preprocessing == Preprocessing(16)
    louder = plugin.identify(plugin.Request(model=f"{own}:louder", name="net", regions=MINE, neural_only=True)).identity
    assert louder.weights.sha256 == found.weights.sha256  # a gain that is no weight
    assert louder.identifier != found.identifier
    own.write_text(tiny.FILE.replace("seed=0", "seed=5"))
    with pytest.raises(ValueError, match=r"nets.py:net makes other weights than the plugin's"):
        found.load(None, own.parent)


def test_a_cnnf_of_ones_own_and_its_control(plugin: Any, own: Path) -> None:
    regions = {"V1": "0", "V2": "2", "V4": "2", "IT": "4"}
    asked = plugin.Request(model=f"{own}:feedback", regions=regions, neural_only=True)
    found = plugin.identify(asked).identity
    control = plugin.identify(plugin.control_of(asked)).identity
    assert (found.iterations, control.iterations) == (1, 0)
    assert (found.regions["IT"], control.regions["IT"]) == ("4@1", "4@0")
    assert found.weights.sha256 == control.weights.sha256
    assert found.load(None, own.parent).iterations == 1
    assert control.load(None, own.parent).iterations == 0
    three = plugin.identify(dataclasses.replace(asked, iterations=3)).identity
    assert three.load(None, own.parent).iterations == 3


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        ("drawn", {}, "nets.py:drawn makes other weights than the plugin's"),
        ("net", {"iterations": 2}, "has no feedback"),
        ("feedback", {"feedback": {"step": 0.5}}, "the function itself sets the feedback"),
        ("net", {"place": {"url": "https://hub/a"}}, "the network's own code makes its weights"),
        ("net", {"neural_only": False}, "has no classes"),
        ("net", {"regions": {}, "image_size": 0}, "image size is 0"),
        ("other_net", {"regions": {}}, "no layer is named for V4, IT; .*name a layer for each in regions"),
        ("tokens", {"regions": dict.fromkeys(MINE, "tokens")}, "expected the images along the first axis"),
        ("batch", {"regions": dict.fromkeys(MINE, "out")}, "an image's features depend on the other images of its batch"),
        ("dropped", {"regions": dict.fromkeys(MINE, "out")}, "it is not deterministic"),
    ],
)
def test_what_no_plugin_is_made_of_ones_own_code(plugin: Any, own: Path, function: str, given: Any, said: str) -> None:
    drawn = "\ndef drawn():\n    torch.seed()\n    return Net()\n"
    nameless = "\ndef other_net():\n    made = net()\n    made.regions = {}\n    return made\n"
    own.write_text(tiny.FILE + drawn + nameless)
    asked = {"model": f"{own}:{function}", "regions": MINE, "neural_only": True, **given}
    with pytest.raises(ValueError, match=said):
        plugin.identify(plugin.Request(**asked))


def test_a_network_in_memory(plugin: Any, asked: Callable[..., Any], own: Path) -> None:
    """Its plugin is that of the request which loads the same network."""
    network = load_network("small", shipped_weights(True), device="cpu")
    made = plugin.prepare(network, plugin.Options(regions=REGIONS, neural_only=True))
    assert made == plugin.identify(asked())
    mine = load_network(f"{own}:net", device="cpu")
    with pytest.raises(ValueError, match="a plugin makes its network anew; give model, the function that makes this one"):
        plugin.prepare(mine, plugin.Options(regions=MINE, neural_only=True))
    options = plugin.Options(model=f"{own}:net", regions=MINE, neural_only=True)
    assert plugin.prepare(mine, options).identity.model == "nets.py:net"
    with torch.no_grad():
        network.module.conv1.weight.neg_()
    with pytest.raises(ValueError, match=r"fashion_cnnf.safetensors holds other weights than the network; save these"):
        plugin.prepare(network, plugin.Options(regions=REGIONS, neural_only=True))


def test_the_identifier_of_a_request_stays(identify: Callable[..., Any], asked: Callable[..., Any]) -> None:
    """Leaderboard and caches know a model by it: a change here needs a new FEATURES_VERSION, or a word in CHANGELOG."""
    assert identify(asked()).identifier == "small_CNNF_54bda59e_2it_2102af8f"
    assert identify(asked(iterations=1, feedback={"step": 0.2}, name="mine")).identifier == "mine_CNNF_54bda59e_1it_db30f89d"
