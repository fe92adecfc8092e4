"""What changes a network's features changes its identity, or leaves it without one."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnf_brain import CNNF, small_net
from cnnf_brain.identity import Unidentifiable, network_identity
from cnnf_brain.images import Preprocessing
from cnnf_brain.networks import Network, load_network

FACTOR = 1.0
NUMBER = itertools.count()


class Holder(nn.Module):
    """A module with one attribute of any kind."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class ByGlobal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * FACTOR


class ByAttribute(nn.Module):
    factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Gain:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Inner(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def go(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Scaled(CNNF):
    """A CNN-F with an attribute of its own."""

    scale = 1.0


class Channels(Preprocessing):
    """A preprocessing of one's own."""

    order: ClassVar = [2, 1, 0]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return super().__call__(image)[self.order]


@dataclass
class Point:
    x: float


class Table(dict):  # type: ignore[type-arg]
    pass


class Number(float):
    pass


def beside(value: Any, **attributes: Any) -> Any:
    for name, content in attributes.items():
        setattr(value, name, content)
    return value


def scaled(scale: float) -> nn.Module:
    torch.manual_seed(0)
    return beside(Scaled(nn.Sequential(nn.Linear(2, 2))), scale=scale)


VALUES: dict[str, Callable[[float], Any]] = {
    "number": lambda v: v,
    "array of names": lambda v: np.array(["x", str(v)]),
    "array of objects": lambda v: np.array([None, v], dtype=object),
    "reversed array": lambda v: (np.arange(4.0) * v)[::-1],
    "conjugate view": lambda v: torch.tensor([1j * v]).conj(),
    "method of a module": lambda v: Inner(v).go,
    "dataclass": lambda v: Point(v),
    "beside a dataclass": lambda v: beside(Point(1.0), y=v),
    "beside a dict": lambda v: beside(Table(a=1), y=v),
    "beside a number": lambda v: beside(Number(1.0), y=v),
    "closure": lambda v: lambda x: x * v,
    "default": lambda v: types.FunctionType((lambda x, by=0: x * by).__code__, globals(), argdefs=(v,)),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_attributes_count(make: Any) -> None:
    first, same, other = (network_identity(Holder(make(v))) for v in (2.0, 2.0, 3.0))
    assert first == same
    assert first != other


def test_an_attribute_of_a_cnnf_of_ones_own_counts() -> None:
    assert network_identity(scaled(1.0)) == network_identity(scaled(1.0)) != network_identity(scaled(2.0))


def test_settings_of_the_feedback_do_not_count() -> None:
    model = small_net()
    before = network_identity(model)
    model.iterations, model.step = 0, 0.5
    assert network_identity(model) == before


@pytest.mark.parametrize(
    "change",
    [{"iterations": 0}, {"step": 0.5}, {"match_norm": True}, {"ada_relu": "printed"}],
    ids=str,
)
def test_settings_of_the_feedback_count_where_the_cnnf_is_a_part_of_the_network(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    known, other = (network_identity(Holder(CNNF(layers, **some))) for some in ({}, change))
    assert known != other


def test_a_class_of_a_shell_or_notebook_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = types.ModuleType("__main__")
    exec("from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): return x * 2\n", vars(shell))
    monkeypatch.setitem(sys.modules, "__main__", shell)
    network = Network(shell.Net(), Preprocessing(8))
    assert network.identity is None
    assert "shell" in network.unidentified


@pytest.mark.parametrize("change", ["global", "class attribute", "class method"])
def test_what_forward_reads_counts(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    kind = ByGlobal if change == "global" else ByAttribute
    before = network_identity(kind())
    if change == "global":
        monkeypatch.setitem(globals(), "FACTOR", 2.0)
    elif change == "class attribute":
        monkeypatch.setattr(ByAttribute, "factor", 2.0)
    else:
        monkeypatch.setattr(ByAttribute, "forward", lambda self, x: x * 7)
    assert network_identity(kind()) != before


def test_the_code_of_a_preprocessing_of_ones_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(kind: type[Preprocessing]) -> str | None:
        return Network(module, kind(28), name="n").identity

    module = small_net()
    found = [identity(Preprocessing), identity(Channels)]
    assert identity(Channels) == found[1]
    monkeypatch.setattr(Channels, "order", [1, 2, 0])
    found.append(identity(Channels))
    monkeypatch.setattr(Channels, "__call__", lambda self, image: -Preprocessing.__call__(self, image))
    found.append(identity(Channels))
    assert len({*found}) == 4
    monkeypatch.setattr(Channels, "order", iter(()))
    assert identity(Channels) is None


UNKNOWN = {
    "method of another object": Gain(2.0).apply,
    "iterator": iter(()),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.empty(1, device="meta"),
    "set without an order": {1, (2,)},
}


@pytest.mark.parametrize("value", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_known_has_no_identity(value: Any) -> None:
    with pytest.raises(Unidentifiable):
        network_identity(Holder(value))


def test_a_module_within_itself_has_an_identity() -> None:
    holder = Holder({})
    holder.value["me"] = [holder, holder.forward]
    assert network_identity(holder) == network_identity(holder)


def test_a_hook_for_all_modules_has_no_identity() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, made: made)
    try:
        assert load_network("small").identity is None
    finally:
        handle.remove()


def test_a_loaded_network_that_is_changed_has_another_identity() -> None:
    network = load_network("small")
    before = network.identity
    with torch.no_grad():
        network.module.conv1.weight.neg_()
    assert network.identity not in (None, before)
    network.module.conv1.register_forward_hook(lambda module, given, made: made * 2)
    assert network.identity is None
    assert "hook" in network.unidentified


@pytest.mark.brainscore
def test_brain_scores_cache_is_not_shared_by_what_cannot_be_identified(homes: Path) -> None:
    from cnnf_brain.brainscore.wrapper import wrapper_identifier

    networks = []
    for by in (2.0, 3.0):
        network = load_network("small")
        network.module.conv1.register_forward_hook(lambda module, given, made, by=by: made * by)
        networks.append(network)
    assert len({wrapper_identifier(network) for network in networks}) == 2


def imported_from(path: Path) -> nn.Module:
    name = f"net_{next(NUMBER)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Net()


@pytest.mark.parametrize("way", ["module in memory", "file:function"])
def test_the_code_that_a_file_imports_from_beside_itself_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net.py").write_text(
        "import beside_the_net\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return beside_the_net.gate(x)\n"
    )
    found = []
    for by in ("1.0", "7.0"):
        (tmp_path / "beside_the_net.py").write_text(f"def gate(x):\n    return x * {by}\n")
        sys.modules.pop("beside_the_net", None)
        if way == "module in memory":
            # the class has the same name in both
            monkeypatch.setattr(sys.modules[__name__], "NUMBER", iter([0]))
            found.append(Network(imported_from(tmp_path / "net.py"), Preprocessing(8), name="n").identity)
        else:
            found.append(load_network(f"{tmp_path}/net.py:Net").identity)
    assert found[0] != found[1]
    assert None not in found


LAB = {
    "__init__.py": "",
    "settings.py": "GAIN = 1.0\n",
    "ops.py": "from . import settings\n\n\ndef gate(x):\n    return x * settings.GAIN\n",
    "late.py": "BY = 1.0\n",
    "net.py": "import lab.ops as ops\nfrom torch import nn\nfrom . import settings\n\n\nclass Net(nn.Module):\n"
    "    @property\n    def by(self):\n        return 1.0\n\n"
    "    def forward(self, x):\n        return ops.gate(x) * self.by\n\n\nclass Late(Net):\n"
    "    def forward(self, x):\n        from . import late\n\n        return x * late.BY\n",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package of the user's own, ``lab``, as an editable install has it; not imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("cnnf_brain.identity.installed", lambda: {"lab": ["torch"]})
    (tmp_path / "lab").mkdir()
    for name, text in LAB.items():
        (tmp_path / "lab" / name).write_text(text)
    monkeypatch.setattr("cnnf_brain.identity.STARTED", time.time() + 60)
    yield tmp_path / "lab"
    leave_lab()


def leave_lab() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        del sys.modules[name]


def identity_in_lab(kind: str = "Net") -> str | None:
    importlib.invalidate_caches()
    return Network(getattr(importlib.import_module("lab.net"), kind)(), Preprocessing(8), name="n").identity


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("1.0", "7.25").replace("return x", "return 3 * x"))


@pytest.mark.parametrize("name", ["settings.py", "ops.py", "net.py", "late.py"])
def test_the_code_of_the_whole_package_counts(lab: Path, name: str) -> None:
    before = identity_in_lab()
    leave_lab()
    assert identity_in_lab() == before is not None
    edit(lab / name)
    leave_lab()
    assert identity_in_lab() not in (None, before)


@pytest.mark.parametrize("name", ["settings.py", "ops.py", "net.py"])
def test_code_that_was_edited_after_it_was_loaded_is_not_taken_for_what_is_on_disk(lab: Path, name: str) -> None:
    importlib.import_module("lab.net")
    edit(lab / name)
    loaded = identity_in_lab()
    leave_lab()
    assert identity_in_lab() not in (None, loaded)


def test_a_constant_of_another_module_that_is_set_in_memory_counts(lab: Path) -> None:
    before = identity_in_lab()
    sys.modules["lab.settings"].GAIN = 2.0  # type: ignore[attr-defined]
    assert identity_in_lab() not in (None, before)


def test_code_that_is_imported_when_it_runs_has_no_identity_once_files_were_edited(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert identity_in_lab("Late") is not None
    monkeypatch.setattr("cnnf_brain.identity.STARTED", 0.0)
    assert identity_in_lab("Late") is None
    assert identity_in_lab("Net") is not None
