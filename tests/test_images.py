"""Preprocessing against torchvision's transforms, batches, damaged images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torchvision import transforms

from cnnf_brain.images import Preprocessing, batches
from cnnf_brain.types import Images


@pytest.mark.parametrize("size", [8, 33])
@pytest.mark.parametrize("shape", [(20, 20), (31, 17)])
def test_colour_is_as_torchvisions_transforms(size: int, shape: Any) -> None:
    image = Image.fromarray(tiny.pictures(1, size=31)[0]).resize(shape)
    expected = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(image)
    found = Preprocessing(size)(image)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6)


def test_one_mean_is_one_grey_channel() -> None:
    image = Image.fromarray(tiny.pictures(1, size=28)[0])
    found = Preprocessing(28, (0.5,), (0.5,))(image)
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255  # ITU-R 601, as Pillow's
    assert found.shape == (1, 28, 28)
    assert np.allclose(found[0].numpy(), 2 * grey - 1, atol=1e-6)


def test_a_mean_in_units_of_255_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mean is \(124, 116, 104\), expected at most 1: .* divide mean and std by 255"):
        Preprocessing(8, (124, 116, 104), (58, 57, 57))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_has_the_networks_channels(mode: str) -> None:
    image = Image.fromarray(tiny.pictures(1)[0]).convert(mode)
    assert Preprocessing(8)(image).shape == (3, 8, 8)
    assert Preprocessing(8, (0.5,), (0.5,))(image).shape == (1, 8, 8)


def test_batches_are_in_order_and_the_last_may_be_smaller() -> None:
    stimuli, preprocessing = tiny.images(7), Preprocessing(8)
    found = list(batches(stimuli, preprocessing, 3))
    assert [len(b) for b in found] == [3, 3, 1]
    one_by_one = torch.stack([preprocessing(stimuli.decode(i)) for i in range(7)])
    assert torch.equal(torch.cat(found), one_by_one)
    assert torch.equal(torch.cat(list(batches(stimuli, preprocessing, 2, start=4))), one_by_one[4:])
    assert list(batches(stimuli, preprocessing, 2, start=7)) == []


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_a_damaged_image_is_named(kind: str) -> None:
    whole = tiny.encoded(tiny.pictures(1)[0])
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not an image"}[kind]
    stimuli = Images(("good", "bad"), lambda i: (whole, content)[i], "a/folder")
    with pytest.raises(
        ValueError, match=r"a/folder: image 'bad' cannot be decoded .*replace the file or leave the image out"
    ):
        stimuli.check()


def test_sixteen_bits_are_refused_since_pillow_would_clip_them() -> None:
    deep = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(deep, format="PNG")
    with pytest.raises(ValueError, match=r"image 'deep' cannot be decoded \(mode I;16; save it with 8 bits per channel\)"):
        Images(("deep",), lambda i: deep.getvalue(), "here").check()


def test_ids_may_not_repeat() -> None:
    with pytest.raises(ValueError, match=r"here: image ids occur more than once: a, c"):
        Images(("a", "c", "b", "a", "c"), lambda i: b"", "here")


def test_the_digest_is_of_the_bytes_in_order() -> None:
    content = [tiny.encoded(one) for one in tiny.pictures(3)]
    first = Images(("a", "b", "c"), lambda i: content[i], "x")
    renamed = Images(("u", "v", "w"), lambda i: content[i], "y")
    other_order = Images(("a", "b", "c"), lambda i: content[::-1][i], "x")
    same_pixels = io.BytesIO()
    Image.open(io.BytesIO(content[0])).save(same_pixels, format="BMP")
    other_bytes = Images(("a", "b", "c"), lambda i: [same_pixels.getvalue(), *content[1:]][i], "x")
    assert first.digest() == renamed.digest()
    assert len({one.digest() for one in (first, other_order, other_bytes)}) == 3
