"""Figures 9b and 9c: which images feedback corrects and spoils, and where the network looks, iteration by iteration.

Grad-CAM (Selvaraju et al. 2017) by captum, of the decision that the iteration itself takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Drawing
from torch import Tensor, nn

from cnnf_brain import style
from cnnf_brain.checks import unknown
from cnnf_brain.model.autograd import to_norm
from cnnf_brain.model.layers import FeedbackLayer
from cnnf_brain.report.runs import Claim, Figure
from cnnf_brain.visualize import view as common
from cnnf_brain.visualize.restoration import Condition, corrupt
from cnnf_brain.visualize.view import EPSILONS, SHOWN, Array, Data, Part, Row, Sample, View

LOOKED_AT = (Condition("clean"), Condition("blur", 1.0), Condition("noise", 0.2))


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
    layers = [(i, layer, layer.name.replace(".", "/")) for i, layer in enumerate(model.feedback_layers)][model.start :]
    with torch.no_grad():
        for state in model.states(view.enter(images)):
            steps = [(name, Step(layer, state.given.get(i), state.sizes.get(i))) for i, layer, name in layers]
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
    """Grad-CAM of each image (n, C, H, W) at iterations 0..N, and the decided classes (N+1, n).

    (N+1, n, h, w): the sum over channels of the maps of ``layer`` (above the target of the feedback) times the mean gradient of the
    decided class's logit, negative values set to 0.
    """
    from captum.attr import LayerGradCam

    known = view.model.layer_names[view.model.start :]
    if layer not in known:
        raise unknown("layer", layer, known, where="the layers above the target of the feedback")
    found = []
    for part in torch.split(images, view.batch_size):
        of_part = []
        for network, h in passes(view, part):
            with torch.no_grad():
                choice = network(h).argmax(-1)
            explained = LayerGradCam(network, network.get_submodule(layer.replace(".", "/")))
            cam = explained.attribute(h, target=choice, relu_attributions=True)
            if cam.dim() != 4:
                raise ValueError(
                    f"layer {layer!r} has no maps (its output is {cam.dim()}-dimensional); name a layer before the flattening"
                )
            of_part.append((cam[:, 0].detach().cpu(), choice.cpu()))
        found.append([torch.stack(both) for both in zip(*of_part, strict=True)])
    maps, classes = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return maps, classes


def area(cams: Tensor) -> Array:
    """(N+1, n): the share of the map that attention covers, (sum a)^2 / (h w sum a^2) (the participation ratio).

    1 where it is even, 1 / (h w) where it is one place; NaN where the map is empty.
    """
    flat = cams.flatten(2).double()
    total, squares = flat.sum(-1), flat.square().sum(-1)
    return torch.where(squares > 0, total.square() / (flat.shape[-1] * squares), torch.nan).numpy()


def groups(classes: Array, labels: Array) -> dict[str, Array]:
    """Row numbers of the images that feedback corrects (wrong at first, right at last), spoils, and neither, right or wrong."""
    first, last = classes[0] == labels, classes[-1] == labels
    return {
        "corrected": np.flatnonzero(~first & last),
        "spoiled": np.flatnonzero(first & ~last),
        "right throughout": np.flatnonzero(first & last),
        "wrong throughout": np.flatnonzero(~first & ~last),
    }


def summarise(areas: Array, rows: Array) -> list[Row]:
    """The area of attention (N+1, n) over the images ``rows`` by iteration, and its change since iteration 0, with intervals.

    The change is over images whose map is empty at neither.
    """
    return [
        {"iteration": t, "images": len(rows), "empty": int(np.isnan(values).sum())}
        | common.cells("area", values)
        | common.cells("change", values - areas[0, rows])
        for t, values in enumerate(areas[:, rows])
    ]


def accuracies(classes: Array, labels: Array) -> list[Row]:
    """Accuracy by iteration, its change since iteration 0, and how many images are corrected and spoiled by then."""
    right = (classes == labels).astype(float)
    table = []
    for t, values in enumerate(right):
        members = groups(classes[: t + 1], labels)
        row: Row = {"iteration": t, "images": len(labels)}
        row |= common.cells("accuracy", values) | common.cells("change", values - right[0])
        table.append(row | {name: len(members[name]) for name in ("corrected", "spoiled")})
    return table


def figure_9b(sample: Sample, epsilons: Sequence[float] = EPSILONS) -> Part:
    """PGD-40: accuracy by iteration, corrected and spoiled images, Grad-CAM of both: table.csv, focus.csv and examples.nc."""
    view, labels = sample.view, sample.labels
    middle = sorted(epsilons)[len(epsilons) // 2]
    layer = last_map(view, sample.images)
    table: list[Row] = []
    focus: list[Row] = []
    examples: list[xr.Dataset] = []
    first_pass, end_to_end = view.threats()
    for threat, epsilon in [*((first_pass, epsilon) for epsilon in epsilons), (end_to_end, middle)]:  # it costs nine times
        sample.tell(f"PGD-40, {threat.name}, epsilon {epsilon:g}")
        made = view.attacked(threat, sample.images, labels, epsilon, sample.seed)
        setting = {"threat": threat.name, "epsilon": epsilon}
        table += [setting | row for row in accuracies(view.see(made).classes.numpy(), labels.numpy())]
        if epsilon == middle:
            cams, decided = grad_cam(view, made, layer)
            areas = area(cams)
            for name, members in groups(decided.numpy(), labels.numpy()).items():
                if len(members):
                    focus += [setting | {"group": name} | row for row in summarise(areas, members)]
                if name in ("corrected", "spoiled"):
                    chosen = common.drawn(members, SHOWN, sample.seed)
                    examples.append(shown_examples(sample, made, (cams, decided), chosen, f"{threat.name}, {name}"))
    data = {"examples.nc": common.joined(examples, "shown")}
    return Part(about_9b(table, focus, layer, sample.seed), {"table.csv": table, "focus.csv": focus}, data, draw)


def figure_9c(sample: Sample) -> Part:
    """Grad-CAM over iterations on clean, blurred and noisy images: table.csv and examples.nc."""
    everything = np.arange(len(sample.rows))
    chosen = common.drawn(everything, SHOWN, sample.seed)
    layer = last_map(sample.view, sample.images)
    table: list[Row] = []
    examples: list[xr.Dataset] = []
    for condition in LOOKED_AT:
        sample.tell(str(condition))
        images = corrupt(sample.images, condition, sample.seed)
        cams, decided = grad_cam(sample.view, images, layer)
        accuracy = (decided == sample.labels).double().mean(1).tolist()
        rows = summarise(area(cams), everything)
        table += [{"condition": str(condition), "accuracy": accuracy[row["iteration"]], **row} for row in rows]
        examples.append(shown_examples(sample, images, (cams, decided), chosen, str(condition)))
    data = {"examples.nc": common.joined(examples, "shown")}
    return Part(about_9c(table, layer, sample.seed), {"table.csv": table}, data, draw)


def shown_examples(sample: Sample, images: Tensor, found: tuple[Tensor, Tensor], chosen: Array, group: str) -> xr.Dataset:
    """The chosen rows of ``images`` (the sample's, changed) with ``found``: their maps and decisions as ``grad_cam`` gives them."""
    cams, decided = found
    data = {
        "image": (("shown", "channel", "row", "column"), images[chosen].numpy()),
        "attention": (("shown", "iteration", "y", "x"), cams[:, chosen].transpose(0, 1).numpy()),
        "decision": (("shown", "iteration"), decided[:, chosen].T.numpy()),
        "label": (("shown",), sample.labels[chosen].numpy()),
        "number": (("shown",), sample.rows[chosen]),
        "group": (("shown",), np.full(len(chosen), group, dtype=object)),
    }
    return xr.Dataset(data)


def about_9b(table: Sequence[Row], focus: Sequence[Row], layer: str, seed: int) -> Figure:
    """What the tables of adversarial examples say."""
    last, middle = max(row["iteration"] for row in table), focus[0]["epsilon"]
    at_end = [row for row in table if row["iteration"] == last]
    corrected = [row for row in focus if row["iteration"] == last and row["group"] == "corrected"]
    claims = [common.claim("9b", "corrects", _changed(row), row["change_low"], row["change_high"]) for row in at_end]
    claims += [narrows("9b", row) for row in corrected]
    counts = [
        f"{row['corrected']} of {row['images']} are corrected and {row['spoiled']} spoiled ({row['threat']})"
        for row in at_end
        if row["epsilon"] == middle
    ]
    values = {"last": last, "middle": middle, "counts": "; ".join(counts), "layer": layer, "seed": seed}
    return common.worded("9b", claims, table[0]["images"], **values)


def about_9c(table: Sequence[Row], layer: str, seed: int) -> Figure:
    """What the table of clean, blurred and noisy images says."""
    last = max(row["iteration"] for row in table)
    at_end = [row for row in table if row["iteration"] == last]
    changes = "; ".join(f"{row['condition']} {common.share(row, 'change')}" for row in at_end)
    claims = [narrows("9c", row) for row in at_end]
    return common.worded("9c", claims, at_end[0]["images"], last=last, changes=changes, layer=layer, seed=seed)


def _changed(row: Row) -> Row:
    """The row with its change in percent."""
    return row | {"change": common.share(row, "change")}


def narrows(part: str, row: Row) -> Claim:
    """The claim that attention narrows: that the change of its area is negative."""
    return common.claim(part, "narrows", _changed(row), -row["change_high"], -row["change_low"])


def draw(data: Data, names: Sequence[str]) -> Drawing:
    """The examples: each image, and the maps of all iterations over it."""
    examples = data["examples.nc"]
    n, iterations = examples.sizes["shown"], examples.sizes["iteration"]
    if n == 0:
        figure = style.new_figure(5, 1)
        figure.text(0.5, 0.5, "No image qualifies: feedback corrects none and spoils none.", ha="center", va="center")
        return figure
    figure = style.new_figure(1.25 * (iterations + 1) + 1.2, 1.45 * n + 0.3)
    for row, axes in enumerate(figure.subplots(n, iterations + 1, squeeze=False)):
        example = examples.isel(shown=row)
        image, label = example["image"].values, int(example["label"])
        common.show(axes[0], image, common.class_name(label, names))
        axes[0].set_ylabel(f"{example['group'].values!s}\nimage {int(example['number'])}", fontsize=6)
        extent = (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)
        for t, axis in enumerate(axes[1:]):
            cam, decided = example["attention"].values[t], int(example["decision"].values[t])
            common.show(axis, image, f"{t}: {common.class_name(decided, names)} {'✓' if decided == label else '✗'}")
            axis.imshow(cam / (cam.max() or 1.0), cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear")
    return figure
