"""Golden features: what the software makes of fixed weights and images must not change unless FEATURES_VERSION says so.

The version stands in the key of every cached product and in every submitted plugin. Where this test fails, the features have
changed: raise ``FEATURES_VERSION`` and write the file anew with ``python tests/test_golden_features.py``. Values are compared
within rounding, which differs between machines.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnf_brain import CNNF, FeatureNorm
from cnnf_brain.activations import features
from cnnf_brain.images import Preprocessing, batches
from cnnf_brain.model.layers import FEEDBACK_LAYERS
from cnnf_brain.networks import Network
from cnnf_brain.types import FEATURES_VERSION, Images, LayerAt

GOLDEN = Path(__file__).with_name("golden") / "features.json"


def fixed(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Numbers in [-1, 1) that no generator's version changes: a linear congruential sequence."""
    n = int(np.prod(shape))
    state = np.cumsum(np.full(n, 0x9E3779B97F4A7C15 + 2 * seed, dtype=np.uint64), dtype=np.uint64)
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(32)
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) / 2**52 - 1).reshape(shape).float()


def filled(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for number, (name, tensor) in enumerate(network.state_dict().items()):
            if tensor.is_floating_point():
                scale = 1.0 if tensor.dim() < 2 else 1.5 / np.sqrt(tensor[0].numel())
                tensor.copy_(fixed(tuple(tensor.shape), number) * scale + ("var" in name) * 2)
    return network


def layers() -> nn.Sequential:
    """A layer of every kind that has a rule."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 6, 3, padding=1),
            norm=FeatureNorm(6),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            strided=nn.Conv2d(6, 8, 3, stride=2, groups=2),
            l2=FeatureNorm(8, "l2"),
            again=nn.ReLU(),
            average=nn.AvgPool2d(2, 1),
            batch=nn.BatchNorm2d(8),
            adaptive=nn.AdaptiveAvgPool2d(2),
            flat=nn.Flatten(),
            drop=nn.Dropout(0.5),
            fc=nn.Linear(32, 7),
            last=nn.ReLU(),
            top=nn.Linear(7, 5),
        )
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "replacement": {},
    "matched": {"step": 0.5, "match_norm": True, "match_layers": True},
    "printed, target": {"step": 0.5, "match_norm": True, "ada_relu": "printed", "target": "pool"},
}
SHOWN = {
    "ImageNet": Preprocessing(20),
    "cropped": Preprocessing(20, resize=24),
    "small": Preprocessing(20, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def pictures() -> list[Image.Image]:
    return [
        Image.fromarray(((fixed((23, 31, 3), seed).numpy() + 1) * 127).astype(np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for seed, size in ((101, (31, 23)), (102, (64, 40)))
    ]


def made() -> dict[str, list[float]]:
    """Norm, mean and first values of every layer's features, for each setting and preprocessing."""
    found = {}
    for name, settings in SETTINGS.items():
        module = CNNF(filled(layers()), iterations=2, **settings).eval()  # type: ignore[arg-type]
        for shown, preprocessing in SHOWN.items():
            network = Network(module, preprocessing, name="golden")
            batch = torch.stack([preprocessing(picture) for picture in pictures()])
            ats = [
                at
                for layer in module.layer_names[module.start :]
                for at in (LayerAt(layer, 0), LayerAt(layer, 2), LayerAt(layer, 1, feedback=True))
            ]
            for at, rows in features(network, batch, ats).items():
                values = (np.linalg.norm(rows.astype(np.float64)), rows.mean(dtype=np.float64), *rows[:, :2].ravel())
                found[f"{name}, {shown}, {at}"] = [float(value) for value in values]
    return found | decoded()


def decoded() -> dict[str, list[float]]:
    """Norm, mean and first values of images of every mode, from encoded files to what enters a colour and a grey network."""
    coloured = pictures()[0]
    clear = coloured.copy()
    clear.putalpha(coloured.convert("L"))
    modes = {"RGB": coloured, "RGBA": clear, "LA": clear.convert("LA"), "CMYK": coloured.convert("CMYK")}
    grey = coloured.convert("L")
    palette = Image.frombytes("P", grey.size, grey.tobytes())
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    modes |= {"L": grey, "P": palette}
    encoded = []
    for picture in modes.values():
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF" if picture.mode == "CMYK" else "PNG")
        encoded.append(buffer.getvalue())
    images = Images(tuple(modes), encoded.__getitem__, "golden")
    found = {}
    for shown, preprocessing in {"colour": Preprocessing(20), "grey": Preprocessing(20, (0.5,), (0.5,), resize=22)}.items():
        for mode, x in zip(modes, next(batches(images, preprocessing, len(modes))).double(), strict=True):
            values = (x.norm(), x.mean(), *x.flatten()[:: x.numel() // 10])
            found[f"image {mode}, {shown}"] = [float(value) for value in values]
    return found


def test_features_are_those_of_their_version() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == FEATURES_VERSION, "FEATURES_VERSION was raised: python tests/test_golden_features.py"
    now = made()
    assert set(now) == set(golden["features"])
    changed = [
        name
        for name, values in now.items()
        if values != pytest.approx(golden["features"][name], rel=2e-4, abs=2e-5 * (1 + golden["features"][name][0]))
    ]
    assert not changed, (
        f"features have changed: raise FEATURES_VERSION and run python tests/test_golden_features.py ({changed[:3]})"
    )


def test_every_kind_of_layer_is_in_it() -> None:
    assert {type(module) for module in layers()} == set(FEEDBACK_LAYERS)


@pytest.mark.parametrize("what", ["a layer", "the preprocessing", "the recurrence", "the decoding", "the grey path"])
def test_a_change_is_noticed(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The guard guards: a small change of the maths fails it."""
    if what == "a layer":
        monkeypatch.setattr(
            FeatureNorm, "size", lambda self, x: torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, 1, 1, 1) * 1.01
        )
    elif what == "the preprocessing":
        shown = Preprocessing.normalise
        monkeypatch.setattr(Preprocessing, "normalise", lambda self, pixels: shown(self, pixels) + 0.01)
    elif what == "the decoding":
        monkeypatch.setattr(
            Images, "decode", lambda self, i: Image.open(io.BytesIO(self.read(i))).convert("L").convert("RGB")
        )
    elif what == "the grey path":
        convert = Image.Image.convert
        monkeypatch.setattr(
            Image.Image, "convert", lambda self, mode: self.split()[1] if mode == "L" else convert(self, mode)
        )
    else:
        towards = CNNF.step_towards
        monkeypatch.setattr(CNNF, "step_towards", lambda self, h, made, *rest: towards(self, h, made * 1.01, *rest))
    golden = json.loads(GOLDEN.read_text())["features"]
    now = made()
    assert any(
        values != pytest.approx(golden[name], rel=2e-4, abs=2e-5 * (1 + golden[name][0])) for name, values in now.items()
    )


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"version": FEATURES_VERSION, "features": made()}, indent=1) + "\n")
