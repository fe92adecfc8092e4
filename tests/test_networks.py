"""What a model and weights name: all kinds, what goes wrong, the digest."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from safetensors import safe_open
from torch import nn
from torchvision import models

import cnnf_brain
from cnnf_brain import networks
from cnnf_brain.activations import check_layers
from cnnf_brain.gram import layer_grams
from cnnf_brain.images import Preprocessing
from cnnf_brain.model import zoo
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.zoo import shipped_weights
from cnnf_brain.networks import Network, load_network
from cnnf_brain.types import LayerAt


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A Python file with networks of one's own."""
    path = tmp_path / "my nets" / "types.py"  # a name that the standard library has as well
    path.parent.mkdir()
    path.write_text(tiny.FILE)
    return path


def network_digest(module: torch.nn.Module) -> str:
    return Network(module, Preprocessing(1)).digest


def weights_of(module: nn.Module, path: Path) -> str:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    return str(path)


# The small net (cards: test_cards.py)


def test_the_shipped_network_runs_as_its_card_says() -> None:
    network = load_network("small")
    assert (network.iterations, network.module.step, network.module.match_norm) == (2, 0.1, True)  # type: ignore[comparison-overlap]
    assert network.title == "small CNN-F (feedback trained)"
    assert network.weights == "shipped, Fashion-MNIST"
    assert network.preprocessing == Preprocessing(28, (0.5,), (0.5,))
    assert network.layer_of("V4") == "pool2"
    assert not network.module.training
    cnn = load_network("small", iterations=0)
    assert cnn.title == "small CNN"
    assert cnn.digest != network.digest
    assert load_network("small", feedback={"step": 0.7}).title == "small CNN-F (feedback settings changed after training)"


def test_weights_without_a_card_run_with_the_trainers_defaults(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = weights_of(cnnf_brain.small_net(), tmp_path / "plain.safetensors")
    small = load_network("small", path)
    assert small.module.settings.as_dict() == {
        "iterations": 2,
        "target": "input",
        "step": 1.0,
        "match_norm": True,
        "match_layers": False,
        "ada_relu": "signed",
        "tolerance": None,
    }
    assert small.feedback == "feedback untrained"


def test_feedback_of_networks_that_do_not_normalise_is_stable_by_default(tmp_path: Path) -> None:
    """Unmatched, maps grow a thousandfold with each iteration, and a few images drive the regression."""
    torch.manual_seed(0)
    theirs = models.alexnet(weights=None)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter *= 2  # as large as trained weights make its maps
    path = weights_of(theirs, tmp_path / "alexnet.safetensors")
    network = load_network("alexnet", path, image_size=64)
    assert (network.iterations, network.module.match_norm, network.module.match_layers) == (2, True, True)  # type: ignore[comparison-overlap]
    assert cnnf_brain.alexnet(path).settings == network.module.settings == cnnf_brain.alexnet().settings
    loose = load_network("alexnet", path, image_size=64, feedback={"match_layers": False, "match_norm": False})
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        held, grown = (n.module.unroll(x).logits.norm(dim=-1)[:, 0] for n in (network, loose))
    assert torch.allclose(held, held[0].expand(3), rtol=1e-4)
    assert grown[2] > 10 * grown[0] or grown[2] < grown[0] / 10


def test_random_weights_are_drawn_with_a_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load_network("small", "none", iterations=0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.digest == again.digest != other.digest
    assert other.weights == "random, seed 1"
    resnet = [load_network("torchvision:resnet18", "none", seed=seed).digest for seed in (0, 0, 1)]
    assert resnet[0] == resnet[1] != resnet[2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": ""}, "weights of small are an empty text; give a file"),
        ({"image_size": 0}, "image size is 0, expected a whole number of pixels"),
        ({"image_size": -3}, "image size is -3"),
        ({"iterations": -1}, "iterations is -1, expected a whole number >= 0"),
    ],
)
def test_nothing_falls_back_to_a_default(asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_network("small", **asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: (w * 100).to(torch.int64), r"conv1.weight is int64, expected floating point.*quantised model"),
        (lambda w: w > 0, r"conv1.weight is bool, expected floating point"),
        (lambda w: w.to(torch.int8), r"conv1.weight is int8, expected floating point"),
    ],
)
def test_weights_of_another_type_are_not_cast(tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    state = cnnf_brain.small_net().state_dict()
    safetensors.torch.save_file({**state, "conv1.weight": change(state["conv1.weight"])}, tmp_path / "w.safetensors")
    for load in (lambda path: load_network("small", path), cnnf_brain.small_net):
        with pytest.raises(ValueError, match=message):
            load(str(tmp_path / "w.safetensors"))


def test_layers_are_checked_without_any_weights(tmp_path: Path) -> None:
    """A wrong layer is found before 528 MB are downloaded."""
    for spec, layer in (("vgg16", "features.16"), ("torchvision:resnet50", "layer2"), ("small", "pool2")):
        network = networks.plan(spec).skeleton()
        check_layers(network.module, [LayerAt(layer)])
        assert spec == "small" or all(p.is_meta for p in network.module.parameters())
        with pytest.raises(ValueError, match="layer 'layer99' is not known"):
            check_layers(network.module, [LayerAt("layer99")])


def test_a_feedback_setting_that_does_not_exist() -> None:
    path = zoo.shipped_weights(True)
    with pytest.raises(ValueError, match=r"feedback setting 'steps' is not known; did you mean 'step'"):
        load_network("small", path, iterations=1, feedback={"steps": 1.0})
    with pytest.raises(ValueError, match=r"layer 'relu9' is not known"):
        load_network("small", path, iterations=1, feedback={"target": "relu9"})


def test_the_shipped_weights_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "SHIPPED", {True: "no.safetensors", False: "no.safetensors"})
    with pytest.raises(
        FileNotFoundError, match=r"no.safetensors: the shipped weights are missing; .* give weights of your own"
    ):
        load_network("small")


# torchvision's


def test_alexnet_from_a_whole_file_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = models.alexnet(weights=None, num_classes=1000).eval()
    network = load_network("alexnet", weights_of(theirs, tmp_path / "alexnet.safetensors"), iterations=1, image_size=64)
    assert network.name == "alexnet CNN-F"
    assert network.preprocessing == Preprocessing(64)
    assert network.layer_of("IT") == "features.12"
    assert not network.headless
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.module(x, iterations=0), theirs(x), atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_convolutions_alone_give_a_headless_network(tmp_path: Path, suffix: str) -> None:
    with torch.device("meta"):
        shapes = models.vgg11(weights=None).state_dict()
    state = {k: torch.zeros(v.shape) for k, v in shapes.items() if k.startswith("features.")}
    path = tmp_path / f"vgg11.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(state, path)
    network = load_network("vgg11", str(path), iterations=2)
    assert network.headless
    assert network.preprocessing.size == 224
    assert network.iterations == 2
    assert network.module.layer_names[-1] == "features.20"
    with pytest.raises(ValueError, match=r"vgg11 CNN-F: no layer is known for region 'V4'; name one"):
        network.layer_of("V4")


def test_weights_of_another_network_list_what_does_not_fit(tmp_path: Path) -> None:
    path = weights_of(tiny.layers(), tmp_path / "tiny.safetensors")
    for spec in ("alexnet", "torchvision:resnet18"):
        with pytest.raises(ValueError, match=r"tiny.safetensors does not fit the network. missing: .*not in the network: "):
            load_network(spec, path)


@pytest.mark.parametrize(("spec", "meant"), [("resnet50", "resnet50"), ("resnet-18", "resnet18"), ("vit_b16", "vit_b_16")])
def test_a_name_of_torchvisions_says_how_it_is_written(spec: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"model '{spec}' is not known; did you mean torchvision:{meant}"):
        load_network(spec)


def test_a_file_without_a_function() -> None:
    with pytest.raises(ValueError, match=r"model 'small.py' names a file; name the function in it too: small.py:FUNCTION"):
        load_network("small.py")


@pytest.mark.parametrize("spec", ["vgg61", "small.p"])
def test_an_unknown_model_lists_the_kinds(spec: str) -> None:
    with pytest.raises(ValueError, match=rf"model '{spec}' is not known.*vgg16.*torchvision:NAME, path/to/file.py:function"):
        load_network(spec)


def test_torchvision_resnet18_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None).eval()
    network = load_network("torchvision:resnet18", weights_of(theirs, tmp_path / "r.safetensors"), image_size=32)
    assert network.name == "torchvision:resnet18"
    assert network.iterations == 0
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.module(x), theirs(x), atol=1e-5)


def test_old_weights_without_counters_of_batches_fit(tmp_path: Path) -> None:
    theirs = models.resnet18(weights=None)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth"
    torch.save(state, path)
    network = load_network("torchvision:resnet18", str(path))
    assert torch.equal(network.module.fc.weight, theirs.fc.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "size"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b1", 240)])
def test_torchvisions_networks_see_images_of_the_size_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch, arch: str, size: int
) -> None:
    state = models.get_model(arch, weights=None, **({"init_weights": False} if arch == "inception_v3" else {})).state_dict()
    monkeypatch.setattr(networks.weight_files, "published", lambda arch, name: state)  # type: ignore[attr-defined]
    network = load_network(f"torchvision:{arch}")
    assert network.preprocessing == Preprocessing(size)
    assert network.weights == "IMAGENET1K_V1"
    assert getattr(network.module, "transform_input", True) is True, "inception_v3 is trained with its input rescaled"
    assert load_network(f"torchvision:{arch}", image_size=64).preprocessing.size == 64


def test_torchvision_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"torchvision model 'resnet19' is not known; did you mean 'resnet1"):
        load_network("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"weights 'IMAGENET1K_V9' of resnet18: torchvision publishes IMAGENET1K_V1"):
        load_network("torchvision:resnet18", "IMAGENET1K_V9")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "FILE:net"])
@pytest.mark.parametrize("asked", [{"iterations": 1}, {"feedback": {"step": 0.5}}])
def test_other_networks_take_no_feedback(file: Path, spec: str, asked: Any) -> None:
    with pytest.raises(ValueError, match="has no feedback; it runs with 0 iterations alone"):
        load_network(spec.replace("FILE", str(file)), **asked)


# A file of one's own


def test_a_network_of_ones_own(file: Path) -> None:
    network = load_network(f"{file}:net")
    assert network.name == "types.py:net"
    assert network.weights == "as built"
    assert network.preprocessing == Preprocessing(16)
    assert network.layer_of("IT") == "second"
    assert not network.module.training
    assert load_network(f"{file}:net", image_size=24).preprocessing == Preprocessing(24)
    import types

    assert hasattr(types, "FunctionType"), "the standard library's module of that name is untouched"


def test_weights_into_a_network_of_ones_own(file: Path, tmp_path: Path) -> None:
    other = load_network(f"{file}:other")
    path = weights_of(other.module, tmp_path / "w.safetensors")
    network = load_network(f"{file}:net", path)
    assert torch.equal(network.module.first.weight, other.module.first.weight)  # type: ignore[arg-type]
    assert network.digest != other.digest, "another function of the file made it"
    with pytest.raises(ValueError, match="does not fit the network"):
        load_network(f"{file}:feedback", path)


def test_a_cnnf_of_ones_own_keeps_its_iterations(file: Path) -> None:
    network = load_network(f"{file}:feedback")
    assert network.iterations == 1
    assert network.name == "types.py:feedback (1 iterations)"


@pytest.mark.parametrize("step", [0.1, 1.0])
def test_a_cnnf_of_ones_own_is_as_its_weights_were_trained_or_refused(tmp_path: Path, step: float) -> None:
    (tmp_path / "own.py").write_text(
        "from cnnf_brain import small_net\n\n\ndef make():\n    return small_net(iterations=5, step="
        + str(step)
        + ", match_norm=True)\n"
    )
    spec, weights = f"{tmp_path}/own.py:make", shipped_weights(True)
    if step == 1.0:  # the card says 0.1
        with pytest.raises(
            ValueError, match=r"by their card the weights .* were trained with step 0.1, the function 1.0; change it there"
        ):
            load_network(spec, weights)
    else:
        network = load_network(spec, weights)
        assert network.iterations == 2
        assert network.feedback == "feedback trained"


def test_an_l2_card_is_not_read_into_an_rms_network(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from cnnf_brain import small_net\n\n\ndef make():\n    return small_net(step=0.1)\n")
    with safe_open(shipped_weights(True), "pt") as file:
        card = json.loads(file.metadata()["card"])
    card["configuration"]["feedback"]["normalisation"] = "l2"
    safetensors.torch.save_file(
        safetensors.torch.load_file(shipped_weights(True)), tmp_path / "l2.safetensors", {"card": json.dumps(card)}
    )
    with pytest.raises(ValueError, match=r"were trained with normalisation l2, the function rms"):
        load_network(f"{tmp_path}/own.py:make", str(tmp_path / "l2.safetensors"))


def test_what_lies_beside_the_file_can_be_imported(file: Path) -> None:
    (file.parent / "beside_the_nets.py").write_text("from torch import nn\nlayer = nn.Conv2d(3, 4, 3)\n")
    file.write_text("from torch import nn\nfrom beside_the_nets import layer\ndef net(): return nn.Sequential(layer)\n")
    assert isinstance(load_network(f"{file}:net").module[0], nn.Conv2d)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"calling broken\(\) in .*types.py failed: RuntimeError: no such luck"),
        ("wrong", r"the function returned a int, expected an nn.Module"),
        ("nett", r"function 'nett' is not known in .*types.py; did you mean 'net'"),
        ("not_a_function", r"function 'not_a_function' is not known in"),
    ],
)
def test_a_function_that_makes_no_network(file: Path, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_network(f"{file}:{function}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net(:", r"running .*types.py failed: SyntaxError"),
        ("import no_such_module_anywhere", r"failed: ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("import sys; sys.exit(3)", r"failed: SystemExit: 3"),
        ("from torch import nn\ndef net():\n n = nn.ReLU(); n.preprocessing = 3; return n", "its preprocessing is a int"),
        (
            "from torch import nn\ndef net():\n n = nn.ReLU(); n.regions = 'V4'; return n",
            "its regions are .V4., expected a dict",
        ),
    ],
)
def test_a_file_that_does_not_run(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_network(f"{file}:net")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model .*no.py:net: no file .*no.py"):
        load_network(f"{tmp_path}/no.py:net")


# Bad weights and devices


class Malicious:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("spec", ["small", "alexnet", "torchvision:resnet18", "FILE:net"])
def test_a_malicious_pickle_is_refused_and_not_run(file: Path, tmp_path: Path, spec: str) -> None:
    trap = tmp_path / "it ran"
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": Malicious(trap)}, protocol=2))
    other = tmp_path / "zip.pt"
    torch.save({"conv1.weight": Malicious(trap)}, other)
    for bad in (path, other):
        with pytest.raises(ValueError, match=r"was not loaded, since loading such a file could run code"):
            load_network(spec.replace("FILE", str(file)), str(bad))
    assert not trap.exists()


@pytest.mark.parametrize("spec", ["small", "alexnet", "torchvision:resnet18"])
def test_weights_that_are_missing_or_damaged(tmp_path: Path, spec: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no.safetensors: no such file"):
        load_network(spec, str(tmp_path / "no.safetensors"))
    path = Path(weights_of(cnnf_brain.small_net(), tmp_path / "cut.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut.safetensors cannot be read as a .safetensors file"):
        load_network(spec, str(path))


@pytest.mark.parametrize("device", ["nonsense", "cuda:63"])
def test_a_device_that_is_not_here(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here .*expected auto, cpu, or cuda"):
        load_network("small", device=device)


# The digest


def test_the_digest_sees_plain_attributes_and_the_file(file: Path) -> None:
    digests = {name: load_network(f"{file}:{name}").digest for name in ("net", "same", "other", "louder", "dead")}
    assert len(set(digests.values())) == 5
    assert load_network(f"{file}:net").digest == digests["net"]
    file.write_text(tiny.FILE.replace("self.gain * self.first(x)", "self.gain + self.first(x)"))
    assert load_network(f"{file}:net").digest != digests["net"]


class Odd(nn.Module):
    """State where torch's state dict does not see it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.plain = torch.zeros(3)
        self.array = np.zeros(2000)
        self._hidden = 1
        self.act = torch.relu


def change_buffer(module: Odd) -> None:
    module.mean += 1  # type: ignore[assignment]


def change_tensor(module: Odd) -> None:
    module.plain[1] = 1


def change_array(module: Odd) -> None:
    module.array[1000] = 1


def change_hidden(module: Odd) -> None:
    module._hidden = 2


def change_function(module: Odd) -> None:
    module.act = torch.tanh


def change_inside(module: Odd) -> None:
    module.inner = nn.MaxPool2d(2, ceil_mode=True)


@pytest.mark.parametrize(
    "change", [change_buffer, change_tensor, change_array, change_hidden, change_function, change_inside]
)
def test_the_digest_sees_state_outside_the_state_dict(change: Any) -> None:
    module = Odd()
    assert network_digest(module) == network_digest(Odd())
    change(module)
    assert network_digest(module) != network_digest(Odd())


def test_the_digest_does_not_depend_on_the_memory_format() -> None:
    plain = CNNF(tiny.layers(), iterations=0)
    assert network_digest(plain) == network_digest(CNNF(tiny.layers()).to(memory_format=torch.channels_last))
    assert network_digest(plain) != network_digest(tiny.layers())


# The identity


LINEAR_AND_CUBIC = """
import torch
from torch import nn
from cnnf_brain.images import Preprocessing

class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.out = nn.Identity()
        self.act = act
        self.preprocessing = Preprocessing(16)

    def forward(self, x):
        return self.out(self.act(self.conv(x)))

def power(n):
    return Net(lambda x: x ** n)

def linear():
    return power(1)

def cubic():
    return power(3)
"""


def test_two_functions_of_one_file_share_no_features(tmp_path: Path, cache: Path) -> None:
    """Closures and the function's name tell them apart: their features were taken from one place of the cache."""
    path = tmp_path / "nets.py"
    path.write_text(LINEAR_AND_CUBIC)
    linear, cubic = (load_network(f"{path}:{name}") for name in ("linear", "cubic"))
    assert linear.identity != cubic.identity
    assert network_digest(linear.module) != network_digest(cubic.module), "by the closure alone"
    at = LayerAt("out")
    ks = [layer_grams(network, tiny.images(12), [at], progress=False)[at].values for network in (linear, cubic)]
    assert not np.allclose(*ks)  # type: ignore[arg-type]


def change_table(module: Odd) -> None:
    module.table["a"][1500] = 1


def change_nested(module: Odd) -> None:
    module.table["b"] = [(1, {"c": 3})]  # type: ignore[assignment]


@pytest.mark.parametrize("change", [change_table, change_nested])
def test_the_digest_sees_into_dicts(change: Any) -> None:
    def made() -> Odd:
        module = Odd()
        module.table = {"a": torch.zeros(2000), "b": [(1, {"c": 2})]}  # type: ignore[assignment]
        return module

    module = made()
    assert network_digest(module) == network_digest(made())
    change(module)
    assert network_digest(module) != network_digest(made())


class Strange:
    """An object of which nobody can say what it holds."""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda module: module.register_forward_pre_hook(lambda m, x: x), "the network itself has a forward hook"),
        (lambda module: setattr(module, "thing", Strange()), "thing is a .*Strange, whose content is not known"),
        (lambda module: setattr(module, "things", {"a": [Strange()]}), "things.* is a .*Strange"),
    ],
)
def test_what_cannot_be_identified_has_no_identity(change: Callable[..., Any], why: str) -> None:
    module = Odd()
    change(module)
    network = Network(module, Preprocessing(16), name="odd")
    assert network.identity is None
    assert re.search(why, network.unidentified)
    assert len(network.digest) == 64
