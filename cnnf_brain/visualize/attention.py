"""Figures 9b and 9c: which images feedback corrects and spoils, and where the network looks, iteration by iteration.

Grad-CAM (Selvaraju et al. 2017) by captum, of the decision that the iteration itself takes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.checks import unknown
from cnnf_brain.model.autograd import to_norm
from cnnf_brain.model.layers import FeedbackLayer
from cnnf_brain.visualize.view import View, mean_interval


class Step(nn.Module):
    """One layer at one iteration, its gate held as the feedback before it has set it.

    ``size`` (B, 1, ...): the norm to which its output is matched, None where it is not.
    """

    def __init__(self, layer: FeedbackLayer, guide: Tensor | None, size: Tensor | None) -> None:
        super().__init__()
        self.layer, self.guide, self.size = layer, guide, size

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer.forward(x, self.guide)[0]
        return x if self.size is None else to_norm(x, self.size)


def passes(view: View, images: Tensor) -> list[tuple[nn.Sequential, Tensor]]:
    """The feedforward pass of each iteration 0..N as a network of its own, with what enters it.

    The gates' signs are constants to autograd in a CNNF as well, so gradients within a pass are the CNNF's own. Layers are named
    as in the CNNF (dots as ``/``, since nn.Module reserves dots).
    """
    model = view.model
    if model.tolerance is not None:
        raise ValueError("Grad-CAM by iteration needs networks that run all iterations; set tolerance to None")
    found: list[tuple[nn.Sequential, Tensor]] = []
    layers = list(enumerate(model.feedback_layers))[model.start :]
    with torch.no_grad():
        for state in model.states(view.enter(images)):
            steps = {
                layer.name.replace(".", "/"): Step(layer, state.given.get(i), state.sizes.get(i)) for i, layer in layers
            }
            found.append((nn.Sequential(OrderedDict(steps)), state.target))
    return found


def last_map(view: View, images: Tensor) -> str:
    """The name of the last layer with maps (B, C, H > 1, W > 1), which Grad-CAM looks at by default."""
    names = view.model.layer_names[view.model.start :]
    with torch.no_grad():
        maps = view.model.unroll(view.enter(images[:1]), iterations=0, return_layers=names).layers
    found = [at.layer for at, map_ in maps.items() if map_.dim() == 4 and min(map_.shape[-2:]) > 1]
    if not found:
        raise ValueError("no layer above the target has maps with more than one place, and Grad-CAM needs one")
    return found[-1]


def grad_cam(view: View, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Grad-CAM of each image at iterations 0..N.

    Parameters
    ----------
    images
        (n, C, H, W) in [0, 1].
    layer
        A layer with maps (B, C, h, w), above the target of the feedback.

    Returns
    -------
    tuple
        (N+1, n, h, w): sum over channels of the maps times the mean gradient of the decided class's logit, negative values set
        to 0. (N+1, n): the decided classes.
    """
    from captum.attr import LayerGradCam

    known = view.model.layer_names[view.model.start :]
    if layer not in known:
        raise unknown("layer", layer, known, where="the layers above the target of the feedback")
    maps, classes = [], []
    for part in images.split(view.batch_size):
        of_part, decided = [], []
        for network, h in passes(view, part):
            with torch.no_grad():
                choice = network(h).argmax(-1)
            explained = LayerGradCam(network, network.get_submodule(layer.replace(".", "/")))
            cam = explained.attribute(h, target=choice, relu_attributions=True)
            if cam.dim() != 4:
                raise ValueError(
                    f"layer {layer!r} has no maps (its output is {cam.dim()}-dimensional); name a layer before the flattening"
                )
            of_part.append(cam[:, 0].detach().cpu())
            decided.append(choice.cpu())
        maps.append(torch.stack(of_part))
        classes.append(torch.stack(decided))
    return torch.cat(maps, 1), torch.cat(classes, 1)


def area(cams: Tensor) -> np.ndarray:
    """(N+1, n): the share of the map that attention covers, (sum a)^2 / (h w sum a^2) (the participation ratio).

    1 where it is even, 1 / (h w) where it is one place; NaN where the map is empty.
    """
    flat = cams.flatten(2).double()
    total, squares = flat.sum(-1), flat.square().sum(-1)
    return torch.where(squares > 0, total.square() / (flat.shape[-1] * squares), torch.nan).numpy()


def groups(classes: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of the images that feedback corrects (wrong at first, right at last), spoils, and neither, right or wrong.

    ``classes`` (N+1, n), ``labels`` (n,).
    """
    first, last = classes[0] == labels, classes[-1] == labels
    return {
        "corrected": np.flatnonzero(~first & last),
        "spoiled": np.flatnonzero(first & ~last),
        "right throughout": np.flatnonzero(first & last),
        "wrong throughout": np.flatnonzero(~first & ~last),
    }


def summarise(areas: np.ndarray, rows: np.ndarray) -> list[dict[str, Any]]:
    """The area of attention over the images ``rows`` by iteration, and its change since iteration 0, with intervals.

    ``areas`` (N+1, n). The change is over images whose map is empty at neither.
    """
    found = []
    for t, values in enumerate(areas[:, rows]):
        mean, low, high = mean_interval(values)
        change, change_low, change_high = mean_interval(values - areas[0, rows])
        row = {"iteration": t, "images": len(rows), "empty": int(np.isnan(values).sum()), "area": mean, "area_low": low}
        row |= {"area_high": high, "change": change, "change_low": change_low, "change_high": change_high}
        found.append(row)
    return found
