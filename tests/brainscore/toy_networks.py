"""Networks so small that a score takes seconds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network

SIZE = 48
REGIONS = {"V1": "conv1", "V2": "pool2@1", "V4": "pool2", "IT": "relu3"}  # of the shipped small network


def toy_layers(seed: int = 0, classes: int = 1000) -> nn.Sequential:
    """Two convolutions and a classifier of random weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 5, stride=2),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(3),
            conv2=nn.Conv2d(8, 6, 3),
            relu2=nn.ReLU(inplace=True),
            flatten=nn.Flatten(),
            fc=nn.Linear(150, classes),
        )
    )


def toy_network(iterations: int = 2, seed: int = 0, classes: int = 1000, **feedback: Any) -> Network:
    """The CNN-F of these layers, or with 0 iterations its CNN, on images of 48 x 48."""
    settings = {"step": 0.3, "match_norm": True, **feedback} if iterations else {}
    module = CNNF(toy_layers(seed, classes), iterations=iterations, **settings).eval()
    return Network(module, Preprocessing(SIZE), {}, name="toy", weights="random")
