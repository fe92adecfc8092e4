"""A lab's package: its entry points add a network, recordings, a metric and an attack to cnnf-brain by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from cnnf_brain import Preprocessing, Recordings
from cnnf_brain.attacks import PGD
from cnnf_brain.predictivity.metrics import Regression, Settings
from cnnf_brain.types import Array, Predictions, Split


class Net(nn.Sequential):
    """A function or class without arguments that gives a torch module, as in ``path/to/file.py:function``."""

    preprocessing = Preprocessing(16)
    regions = {"V4": "1"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU())


class Sessions:
    """Something to call with a region; ``regions`` names those that there are."""

    regions = ("V4",)

    def __call__(self, region: str) -> Recordings:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        return Recordings.from_arrays(rng.normal(size=(40, 3)), images, region=region)


def nearest(gram: Array, responses: Array, splits: Sequence[Split], settings: Settings) -> Predictions:
    """Each held-out image gets the responses to the training image that is nearest to it in the layer."""
    squares = gram.diagonal()
    distances = squares[:, None] + squares - 2 * gram
    values = [responses[split.train][distances[np.ix_(split.test, split.train)].argmin(1)] for split in splits]
    return Predictions(tuple(splits), tuple(one[None] for one in values), (1,) * len(splits))


metric = Regression("the responses to the nearest training image", nearest)
recordings = Sessions()
attack = PGD(3)
