"""What --model and --weights name: all kinds, what goes wrong, the card, the digest."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from torch import nn
from torchvision import models

import cnnf_brain
from cnnf_brain import networks
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.feedback import CNNF
from cnnf_brain.networks import load_network, network_digest
from cnnf_brain.trainer.card import save_weights


@pytest.fixture
def file(tmp_path) -> Path:
    """A Python file with networks of one's own."""
    path = tmp_path / "my nets" / "types.py"  # a name that the standard library has as well
    path.parent.mkdir()
    path.write_text(tiny.FILE)
    return path


def weights_of(module: nn.Module, path: Path) -> str:
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)
    return str(path)


# The small net


def small_card(path: Path, **card: object) -> str:
    torch.manual_seed(0)
    save_weights(path, cnnf_brain.small_net(iterations=1), card)
    return str(path)


def test_small_takes_the_cards_settings(tmp_path):
    settings = {
        "iterations": 5,
        "target": "relu1",
        "step": 0.1,
        "match_norm": True,
        "match_layers": False,
        "ada_relu": "printed",
        "tolerance": None,
    }
    path = small_card(tmp_path / "a.safetensors", feedback=settings, normalisation="l2")
    network = load_network("small", path, iterations=3)
    assert network.module.settings == {**settings, "iterations": 3}
    assert network.iterations == 3
    assert network.name == "small CNN-F"
    assert network.weights == path
    assert network.preprocessing == Preprocessing(28, (0.5,), (0.5,))
    assert network.layer_of("V4") == "pool2"
    assert not network.headless
    assert not network.module.training
    l2 = cnnf_brain.small_net(path, normalisation="l2", **{**settings, "iterations": 3}).eval()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    rms = cnnf_brain.small_net(path, **{**settings, "iterations": 3}).eval()
    assert torch.allclose(network.module(x), l2(x), atol=1e-6)  # channels_last rounds otherwise
    assert not torch.allclose(network.module(x), rms(x), atol=1e-4)


def test_flags_override_the_card(tmp_path):
    path = small_card(tmp_path / "a.safetensors", feedback={"target": "relu1", "step": 0.1, "iterations": 2})
    network = load_network("small", path, iterations=1, feedback={"step": 0.7, "match_norm": True})
    assert {k: network.module.settings[k] for k in ("target", "step", "match_norm")} == {
        "target": "relu1",
        "step": 0.7,
        "match_norm": True,
    }


def test_with_0_iterations_it_is_the_cnn(tmp_path):
    path = small_card(tmp_path / "a.safetensors", feedback={"target": "relu1", "step": 0.1, "iterations": 2})
    network = load_network("small", path)
    assert network.name == "small CNN"
    assert network.iterations == 0
    assert network.module.settings["target"] == "input"
    assert network.digest == load_network("small", path, iterations=2).digest


def test_weights_without_a_card_run_with_the_defaults(tmp_path):
    torch.manual_seed(0)
    path = weights_of(cnnf_brain.small_net(), tmp_path / "plain.safetensors")
    assert load_network("small", path, iterations=1).module.settings["step"] == 1.0


def test_a_feedback_setting_that_does_not_exist(tmp_path):
    path = small_card(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"feedback setting 'steps' is not known; did you mean 'step'"):
        load_network("small", path, iterations=1, feedback={"steps": 1.0})
    with pytest.raises(ValueError, match=r"layer 'relu9' is not known"):
        load_network("small", path, iterations=1, feedback={"target": "relu9"})


def test_the_shipped_weights_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setattr(networks, "SHIPPED", {True: "no.safetensors", False: "no.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"no.safetensors: the shipped weights are missing; .* give --weights"):
        load_network("small")


# torchvision's


def test_alexnet_from_a_whole_file_is_torchvisions(tmp_path):
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
def test_convolutions_alone_give_a_headless_network(tmp_path, suffix):
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


def test_weights_of_another_network_list_what_does_not_fit(tmp_path):
    path = weights_of(tiny.layers(), tmp_path / "tiny.safetensors")
    for spec in ("alexnet", "torchvision:resnet18"):
        with pytest.raises(ValueError, match=r"tiny.safetensors does not fit the network. missing: .*not in the network: "):
            load_network(spec, path)


@pytest.mark.parametrize("spec", ["vgg61", "small.py", "resnet50"])
def test_an_unknown_model_lists_the_kinds(spec):
    with pytest.raises(ValueError, match=rf"model '{spec}' is not known.*vgg16.*torchvision:NAME, path/to/file.py:function"):
        load_network(spec)


def test_torchvision_resnet18_from_a_file(tmp_path):
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None).eval()
    network = load_network("torchvision:resnet18", weights_of(theirs, tmp_path / "r.safetensors"), image_size=32)
    assert network.name == "torchvision:resnet18"
    assert network.iterations == 0
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(network.module(x), theirs(x), atol=1e-5)


def test_old_weights_without_counters_of_batches_fit(tmp_path):
    theirs = models.resnet18(weights=None)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth"
    torch.save(state, path)
    network = load_network("torchvision:resnet18", str(path))
    assert torch.equal(network.module.fc.weight, theirs.fc.weight)


@pytest.mark.parametrize(("arch", "size"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b1", 240)])
def test_torchvisions_networks_see_images_of_the_size_they_were_trained_with(monkeypatch, arch, size):
    state = models.get_model(arch, weights=None, **({"init_weights": False} if arch == "inception_v3" else {})).state_dict()
    monkeypatch.setattr(networks.weight_files, "published", lambda arch, name: state)
    network = load_network(f"torchvision:{arch}")
    assert network.preprocessing == Preprocessing(size)
    assert network.weights == "IMAGENET1K_V1"
    assert getattr(network.module, "transform_input", True) is True, "inception_v3 is trained with its input rescaled"
    assert load_network(f"torchvision:{arch}", image_size=64).preprocessing.size == 64


def test_torchvision_names_are_checked():
    with pytest.raises(ValueError, match=r"torchvision model 'resnet19' is not known; did you mean 'resnet1"):
        load_network("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"weights 'IMAGENET1K_V9' of resnet18: torchvision publishes IMAGENET1K_V1"):
        load_network("torchvision:resnet18", "IMAGENET1K_V9")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "FILE:net"])
@pytest.mark.parametrize("asked", [{"iterations": 1}, {"feedback": {"step": 0.5}}])
def test_other_networks_take_no_feedback(file, spec, asked):
    with pytest.raises(ValueError, match="has no feedback; it runs with 0 iterations alone"):
        load_network(spec.replace("FILE", str(file)), **asked)


# A file of one's own


def test_a_network_of_ones_own(file):
    network = load_network(f"{file}:net")
    assert network.name == "types.py:net"
    assert network.weights == "as built"
    assert network.preprocessing == Preprocessing(16)
    assert network.layer_of("IT") == "second"
    assert not network.module.training
    assert load_network(f"{file}:net", image_size=24).preprocessing == Preprocessing(24)
    import types

    assert hasattr(types, "FunctionType"), "the standard library's module of that name is untouched"


def test_weights_into_a_network_of_ones_own(file, tmp_path):
    other = load_network(f"{file}:other")
    path = weights_of(other.module, tmp_path / "w.safetensors")
    network = load_network(f"{file}:net", path)
    assert torch.equal(network.module.first.weight, other.module.first.weight)
    assert network.digest == other.digest
    with pytest.raises(ValueError, match="does not fit the network"):
        load_network(f"{file}:feedback", path)


def test_a_cnnf_of_ones_own_keeps_its_iterations(file):
    network = load_network(f"{file}:feedback")
    assert network.iterations == 1
    assert network.name == "types.py:feedback (1 iterations)"


def test_what_lies_beside_the_file_can_be_imported(file):
    (file.parent / "beside_the_nets.py").write_text("from torch import nn\nlayer = nn.Conv2d(3, 4, 3)\n")
    file.write_text("from torch import nn\nfrom beside_the_nets import layer\ndef net(): return nn.Sequential(layer)\n")
    assert isinstance(load_network(f"{file}:net").module[0], nn.Conv2d)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"calling broken\(\) in .*types.py failed: RuntimeError: no such luck"),
        ("wrong", r"wrong\(\) returned a int, expected an nn.Module"),
        ("nett", r"function 'nett' is not known in .*types.py; did you mean 'net'"),
        ("not_a_function", r"function 'not_a_function' is not known in"),
    ],
)
def test_a_function_that_makes_no_network(file, function, message):
    with pytest.raises(ValueError, match=message):
        load_network(f"{file}:{function}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net(:", r"running .*types.py failed: SyntaxError"),
        ("import no_such_module_anywhere", r"failed: ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("import sys; sys.exit(3)", r"failed: SystemExit: 3"),
        ("from torch import nn\ndef net():\n n = nn.ReLU(); n.preprocessing = 3; return n", "its preprocessing is a int"),
        ("from torch import nn\ndef net():\n n = nn.ReLU(); n.regions = 'V4'; return n", "its regions are a str"),
    ],
)
def test_a_file_that_does_not_run(file, text, message):
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_network(f"{file}:net")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model .*no.py:net: no file .*no.py"):
        load_network(f"{tmp_path}/no.py:net")


# Bad weights and devices


class Malicious:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("spec", ["small", "alexnet", "torchvision:resnet18", "FILE:net"])
def test_a_malicious_pickle_is_refused_and_not_run(file, tmp_path, spec):
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
def test_weights_that_are_missing_or_damaged(tmp_path, spec):
    with pytest.raises(FileNotFoundError, match=r"no.safetensors: no such file"):
        load_network(spec, str(tmp_path / "no.safetensors"))
    path = Path(weights_of(cnnf_brain.small_net(), tmp_path / "cut.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut.safetensors: damaged or not a .safetensors file"):
        load_network(spec, str(path))


@pytest.mark.parametrize("device", ["nonsense", "cuda:63"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here .*try --device cpu"):
        load_network("small", device=device)


# The digest


def test_the_digest_sees_plain_attributes_and_the_file(file):
    digests = {name: load_network(f"{file}:{name}").digest for name in ("net", "same", "other", "louder", "dead")}
    assert digests["net"] == digests["same"]
    assert len(set(digests.values())) == 4
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
    module.mean += 1


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
def test_the_digest_sees_state_outside_the_state_dict(change):
    module = Odd()
    assert network_digest(module) == network_digest(Odd())
    change(module)
    assert network_digest(module) != network_digest(Odd())


def test_the_digest_does_not_depend_on_the_memory_format():
    plain = CNNF(tiny.layers(), iterations=0)
    assert network_digest(plain) == network_digest(CNNF(tiny.layers()).to(memory_format=torch.channels_last))
    assert network_digest(plain) != network_digest(tiny.layers())
