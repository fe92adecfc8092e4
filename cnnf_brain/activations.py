"""A batch of images -> features of layers at iterations. The only module that knows hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.checks import running, unknown
from cnnf_brain.images import batches
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.state import FeedbackResult
from cnnf_brain.networks import Network
from cnnf_brain.types import Array, Images, LayerAt

PROBED = 4  # images that a network is tried on
SAME_ROWS = 1e-3  # relative distance of two rows of one image in the first pass; rounding stays far below
NOT_DETERMINISTIC = (
    "the same images give other features the second time: it is not deterministic (noise, dropout, a "
    "state kept between calls)"
)
DEPENDS_ON_BATCH = (
    "an image's features depend on the other images of its batch (batch statistics, or "
    "images that are not along the first axis)"
)
GROWTH = 100.0  # of a map over its first pass, above which a few images can drive a regression


def check_layers(model: nn.Module, layers: Iterable[LayerAt]) -> None:
    """A ValueError for a layer that ``model`` lacks (near names listed), or an iteration or feedback map that it does not run."""
    names = None
    for at in layers:
        if isinstance(model, CNNF):
            model.check_layer(at)
            continue
        if names is None:
            names = [name for name, _ in model.named_modules() if name]
        if at.layer not in names:
            raise unknown("layer", at.layer, names, type(model).__name__)
        if at.iteration > 0 or at.feedback:
            raise ValueError(f"{at}: {type(model).__name__} runs no feedback; its layers have iteration 0 only")


def extract(model: nn.Module, batch: Tensor, layers: Sequence[LayerAt], name: str = "") -> dict[LayerAt, Tensor]:
    """The maps (B, ...) of ``layers`` for ``batch`` (B, C, H, W); a CNNF runs as many iterations as they need.

    A ModelError, with ``name``, where the network cannot be run.
    """
    name = name or type(model).__name__
    if isinstance(model, CNNF):
        with running(name, batch.shape, ValueError):
            result = model.unroll(batch, iterations=max(at.iteration for at in layers), return_layers=layers)
        assert isinstance(result, FeedbackResult)
        return result.layers
    return _hooked(model, batch, layers, name)


def _hooked(model: nn.Module, batch: Tensor, layers: Sequence[LayerAt], name: str) -> dict[LayerAt, Tensor]:
    """As ``extract`` for any other network."""
    found = _outputs(model, batch, layers, name)
    for at, output in found.items():
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{at}: the layer's output is a {type(output).__name__}, not one tensor; choose a layer inside it"
            )
    missed = [str(at) for at in layers if at not in found]
    if missed:
        raise ValueError(
            f"{', '.join(missed)}: not called in a forward pass of {type(model).__name__}; choose another layer"
        )
    return found


def _outputs(model: nn.Module, batch: Tensor, layers: Iterable[LayerAt], name: str) -> dict[LayerAt, Any]:
    """What the layers that are called return, in the order in which they do, by forward hooks.

    Outputs are copied, since a following in-place layer would change them; a module that is called more than once gives its
    last output, as in Brain-Score.
    """
    found: dict[LayerAt, Any] = {}

    def keep(at: LayerAt) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            found[at] = output.detach().clone() if isinstance(output, Tensor) else output

        return hook

    handles = [model.get_submodule(at.layer).register_forward_hook(keep(at)) for at in layers]
    try:
        with running(name, batch.shape):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Layer:
    """A layer of a network: its ``name``, its ``kind`` (the module's class), and the ``shape`` of its map for one image."""

    name: str
    kind: str
    shape: tuple[int, ...]


@torch.inference_mode()
def list_layers(network: Network) -> list[Layer]:
    """The layers that can be scored, in the order in which an image passes them.

    The network, in evaluation mode, is shown one empty image of its own size; on the meta device it computes nothing. A module that
    is not called, or that does not return one tensor with the images along the first axis, is left out.

    Raises
    ------
    ModelError
        The network cannot be run.

    Examples
    --------
    >>> import cnnf_brain as cb
    >>> [layer for layer in cb.list_layers(cb.load_network("small")) if layer.kind == "MaxPool2d"]
    [Layer(name='pool2', kind='MaxPool2d', shape=(64, 12, 12))]
    """
    shown, module = network.preprocessing, network.module.eval()
    image = torch.zeros(1, len(shown.mean), shown.size, shown.size, device=network.device)
    if isinstance(module, CNNF):
        maps = extract(module, image, [LayerAt(name) for name in module.layer_names], network.name)
    else:
        maps = _outputs(module, image, [LayerAt(name) for name, _ in module.named_modules() if name], network.name)
    return [
        Layer(at.layer, type(module.get_submodule(at.layer)).__name__, tuple(values.shape[1:]))
        for at, values in maps.items()
        if isinstance(values, Tensor) and values.dim() > 1 and len(values) == 1
    ]


@dataclass(frozen=True)
class Probe:
    """What the first images tell of a network: ``counts``, features per image of each layer; ``growth``, by how much a layer's
    map at a later iteration is larger (root mean square) than in the first pass, where that is more than GROWTH."""

    counts: dict[LayerAt, int]
    growth: dict[LayerAt, float]


def features(network: Network, batch: Tensor, layers: Sequence[LayerAt]) -> dict[LayerAt, Array]:
    """``feature_rows`` as NumPy arrays."""
    return {at: rows.cpu().numpy() for at, rows in feature_rows(network, batch, layers).items()}


@torch.inference_mode()
def feature_rows(network: Network, batch: Tensor, layers: Sequence[LayerAt]) -> dict[LayerAt, Tensor]:
    """Rows (B, n_features), float32, of each layer for a preprocessed batch (B, C, size, size), where the network is.

    Raises
    ------
    ValueError
        A layer whose first axis is not the images; features that are not finite.
    ModelError
        The network cannot take the images, or its code fails.
    """
    shaped = batch.to(network.device, memory_format=torch.channels_last)
    with float32_convolutions(network.device):
        maps = extract(network.module, shaped, layers, network.name)
    for at, values in maps.items():
        if values.layout != torch.strided or values.is_complex() or values.is_quantized or values.is_meta:
            kind = f"{values.dtype}, {values.layout}, {values.device}"
            raise ValueError(f"{network.name} {at}: the layer's output is {kind}; expected real numbers in a dense tensor")
        if values.dim() < 2 or len(values) != len(batch):
            raise ValueError(
                f"{network.name} {at}: the layer's output has shape {tuple(values.shape)} for {len(batch)} images; expected the "
                "images along the first axis (a layer that puts tokens or time first has to be transposed in the network)"
            )
    return {at: as_rows(values, at) for at, values in maps.items()}


def probe(network: Network, images: Images, layers: Sequence[LayerAt]) -> Probe:
    """Show a network the first images, in two orders and batch sizes, before long work.

    Row i must belong to image i and depend on nothing else: in the first pass the same images in another order and batch size give
    the same rows.

    Raises
    ------
    ValueError
        As ``features``; a network that is not deterministic, stays in training mode after ``eval()``, or whose rows depend on the
        other images of a batch (batch statistics), with the reason.
    ModelError
        As ``features``.
    """
    layers = list(dict.fromkeys(layers))
    n = min(PROBED, len(images))
    batch = next(batches(images, network.preprocessing, n))
    _check_module(network)
    firsts = {at: LayerAt(at.layer, 0, at.feedback) for at in layers}  # what growth is measured against
    passes = [LayerAt(at.layer) for at in layers]
    rows = features(network, batch, list(dict.fromkeys([*layers, *firsts.values(), *passes])))
    _same(network, rows, features(network, batch, layers), NOT_DETERMINISTIC)
    # In the first pass: with feedback a batch's rounding may grow without bound, and a CNNF's feedback is of one image by itself.
    _same(network, rows, _in_parts(network, batch, passes), DEPENDS_ON_BATCH)
    size = {at: float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) for at, values in rows.items()}
    grown = {at: size[at] / max(size[first], 1e-30) for at, first in firsts.items() if at.iteration}
    return Probe({at: rows[at].shape[1] for at in layers}, {at: by for at, by in grown.items() if by > GROWTH})


def _check_module(network: Network) -> None:
    """A ValueError for a module that stays in training mode, or whose weights are not float32 numbers."""
    network.module.eval()
    training = [name or "the network itself" for name, module in network.module.named_modules() if module.training]
    if training:
        raise ValueError(f"{network.name}: {training[0]} stays in training mode after eval(); its features would be random")
    for name, weight in network.module.named_parameters():
        if weight.is_meta:
            raise ValueError(f"{network.name}: {name} is on the meta device, without values; load its weights first")
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ValueError(f"{network.name}: {name} is {weight.dtype}, expected float32; call float() on the module")


def _in_parts(network: Network, batch: Tensor, layers: Sequence[LayerAt]) -> dict[LayerAt, Array]:
    """The rows of the same images, in another order and in batches of other sizes."""
    n = len(batch)
    order, wanted = [n - 1, *range(n - 1)], list(dict.fromkeys(layers))
    parts = [features(network, batch[some], wanted) for some in (order[:1], order[1:]) if some]
    return {at: np.concatenate([part[at] for part in parts])[np.argsort(order)] for at in wanted}


def _same(network: Network, rows: dict[LayerAt, Array], other: dict[LayerAt, Array], reason: str) -> None:
    for at, values in other.items():
        apart = np.linalg.norm(rows[at] - values, axis=1)
        if (apart > SAME_ROWS * np.linalg.norm(rows[at], axis=1) + np.finfo(np.float32).tiny).any():
            raise ValueError(f"{network.name} {at}: {reason}; such features cannot be scored")


@contextmanager
def float32_convolutions(device: torch.device) -> Iterator[None]:
    """Convolutions and products in float32 proper, whatever was set: autocast is off, and TF32 (10 bits), to which torch's default
    rounds the input of convolutions on a GPU."""
    autocast = torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with autocast, tf32:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_rows(values: Tensor, at: LayerAt) -> Tensor:
    """(B, n_features) float32 of maps (B, ...), C-order; a ValueError where they are not finite."""
    rows = values.detach().flatten(1).to(torch.float32)
    if not rows.isfinite().all():
        hint = "; use fewer iterations, a smaller step, match_norm or match_layers" if at.iteration else ""
        raise ValueError(
            f"{at}: features are not finite (NaN, or beyond float32){hint or '; look at weights and preprocessing'}"
        )
    return rows


def of_unit_norm(rows: Tensor) -> Tensor:
    """Rows (B, n_features) float32 scaled to norm 1; rows of zeros stay. In float64, on the CPU where a device has none."""
    exact = rows.cpu().double() if rows.device.type == "mps" else rows.double()
    norms = exact.norm(dim=1, keepdim=True)
    return (exact / torch.where(norms > 0, norms, 1.0)).float()
