"""What travels in a plugin: the package's part that it needs, and code of the user's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from brainscore.toy_networks import REGIONS
from PIL import Image

from cnnf_brain.model.zoo import shipped_weights

ROOT = Path(__file__).resolve().parents[2]

# A process that has no cnnf_brain: the plugin is imported from the folder it lies in.
ALONE = """
import sys
sys.modules["cnnf_brain"] = None
for name in ("safetensors", "pooch"):
    sys.modules[name] = None
import importlib, numpy as np
plugin = importlib.import_module(f"{sys.argv[1]}.model")
model = plugin.get_model(sys.argv[1])
wrapper = model.activations_model
found = wrapper.get_activations(wrapper.preprocess([sys.argv[2]]), ["pool2@2", "relu3@1"])
np.savez(sys.argv[3], **found)
"""


@pytest.fixture(scope="module")
def vendor() -> Any:
    from cnnf_brain.brainscore import vendor

    return vendor


@pytest.mark.slow
def test_a_plugin_runs_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    """Its features are those of the package, bit for bit."""
    from cnnf_brain import activations
    from cnnf_brain.brainscore.plugin import Request, identify, write_plugins
    from cnnf_brain.types import LayerAt

    weights = tmp_path / "small.pt"
    torch.save(safetensors.torch.load_file(shipped_weights(True)), weights)
    feedback = {"step": 0.1, "match_norm": True}
    plugin = identify(Request(weights, model="small", regions=REGIONS, neural_only=True, feedback=feedback, iterations=2))
    ((folder, _),) = write_plugins([plugin], tmp_path / "out")
    assert not (folder / "requirements.txt").exists()
    Image.effect_mandelbrot((40, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(tmp_path / "image.png")
    environment = {**os.environ, "CNNF_BRAIN_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(folder.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNF_BRAIN_CACHE", environment["CNNF_BRAIN_CACHE"])
        shutil.copy(weights, plugin.identity.weights.local)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        ALONE,
        folder.name,
        str(tmp_path / "image.png"),
        str(tmp_path / "found.npz"),
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    network = plugin.identity.load(weights)
    batch = network.preprocessing(Image.open(tmp_path / "image.png"))[None].to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = activations.extract(network.module, batch, [LayerAt("pool2", 2), LayerAt("relu3", 1)])
    with np.load(tmp_path / "found.npz") as found:
        assert len(found) == 2
        for at, map_ in expected.items():
            np.testing.assert_array_equal(found[str(at)], map_.numpy())


def test_the_copy_is_small_licensed_and_free_of_the_package(vendor: Any) -> None:
    copy = vendor.package_files()
    assert sum(map(len, copy.values())) < 1_000_000
    assert copy["cnnf_brain/LICENSE"] == (ROOT / "LICENSE").read_text()
    assert not [name for name in copy if re.search(r"[ -]|metadata", name)]
    assert "model_registry[" not in "".join(copy.values())  # the website reads identifiers by this text
    for name, text in copy.items():
        if name.endswith(".py"):
            assert "cnnf_brain" not in {one.partition(".")[0] for one in vendor.imported(text)}, name
    there = {name.removeprefix("cnnf_brain/") for name in copy}
    assert {"model/settings.py", "types.py", "checks.py", "io.py", "identity.py"} < there
    assert not there & {
        "results.py",
        "cli.py",
        "gram.py",
        "style.py",
        "compare.py",
        "brainscore/plugin.py",
        "brainscore/check.py",
    }
    assert not {name.partition("/")[0] for name in there} & {"recordings", "predictivity", "trainer", "report", "attacks"}
    assert "CNNF" in copy["cnnf_brain/__init__.py"]
    assert "predictivity" not in copy["cnnf_brain/__init__.py"]


def test_the_copy_imports_what_brain_score_has(vendor: Any) -> None:
    """All but safetensors, which requirements.txt names for such weights, and what a plugin never asks for: pooch and
    huggingface_hub, which are imported where something is downloaded."""
    texts = [text for name, text in vendor.package_files().items() if name.endswith(".py")]
    tops = {one.partition(".")[0] for text in texts for one in vendor.imported(text)}
    assert tops & vendor.absent() <= {"safetensors", "pooch", "huggingface_hub"}
    assert {"torch", "brainscore_vision"} <= tops


@pytest.mark.parametrize(
    ("text", "to", "made"),
    [
        ("from cnnf_brain import io\n", ".", "from . import io\n"),
        (
            "if 1:\n    from cnnf_brain.model.zoo import (\n        a,\n    )\n",
            "..",
            "from ..model.zoo import (\n        a,\n    )\n",
        ),
        ("from cnnf_brains import x\n", ".", "from cnnf_brains import x\n"),
    ],
)
def test_imports_become_relative(vendor: Any, text: str, to: str, made: str) -> None:
    assert made in vendor.redirected(text, to, "a.py")


OWN = "brainscore_vision.models.mine.cnnf_brain"


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("from cnnf_brain.images import Preprocessing", f"from {OWN}.images import Preprocessing"),
        ("from cnnf_brain import CNNF", f"from {OWN} import CNNF"),
        ("import cnnf_brain", f"import {OWN} as cnnf_brain"),
        ("import cnnf_brain as cb  # ours", f"import {OWN} as cb  # ours"),
        ("import cnnf_brain.images", f"import {OWN}.images, {OWN} as cnnf_brain"),
        ("import cnnf_brain.images as im", f"import {OWN}.images as im"),
        ("import helper", "import helper"),
    ],
)
def test_code_of_ones_own_takes_the_copy(vendor: Any, tmp_path: Path, line: str, made: str) -> None:
    (tmp_path / "net.py").write_text(f"{line}\n")
    (tmp_path / "helper.py").write_text("from parts.layers import x\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "layers.py").write_text("import numpy\n")
    own = vendor.read_own_code(f"{tmp_path / 'net.py'}:net")
    files = own.files("mine")
    assert files["network_code/net.py"] == f"{made}\n"
    beside = {"network_code/helper.py", "network_code/parts/layers.py"} if "helper" in line else set()
    assert set(files) == {"network_code/net.py"} | beside
    assert own.sources["net.py"] == f"{line}\n"


def test_code_that_differs_has_another_hash(vendor: Any, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    first, other = (vendor.read_own_code(f"{tmp_path / 'net.py'}:{name}").digest for name in ("net", "other"))
    (tmp_path / "helper.py").write_text("x = 2\n")
    assert len({first, other, vendor.read_own_code(f"{tmp_path / 'net.py'}:net").digest}) == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("my net.py", "x = 1\n", "takes no names with spaces; rename it"),
        ("net.py", "x = (\n", "cannot be read as Python"),
        ("net.py", "import os, cnnf_brain\n", "not in a line of its own"),
    ],
)
def test_code_that_no_plugin_takes(vendor: Any, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        vendor.read_own_code(f"{tmp_path / name}:net").files("mine")


def test_a_file_that_is_not_there(vendor: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.py"):
        vendor.read_own_code(f"{tmp_path / 'none.py'}:net")
