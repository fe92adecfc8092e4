"""A batch of images -> features of layers at iterations. The only module that knows hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from cnnf_brain.checks import unknown
from cnnf_brain.model.feedback import CNNF, FeedbackResult, Keep
from cnnf_brain.types import LayerAt


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


def extract(model: nn.Module, batch: Tensor, layers: Sequence[LayerAt]) -> dict[LayerAt, Tensor]:
    """The maps (B, ...) of ``layers`` for ``batch`` (B, C, H, W); a CNNF runs as many iterations as they need."""
    if isinstance(model, CNNF):
        result = model(batch, iterations=max(at.iteration for at in layers), keep=Keep(layers))
        assert isinstance(result, FeedbackResult)
        return result.layers
    return _hooked(model, batch, layers)


def _hooked(model: nn.Module, batch: Tensor, layers: Sequence[LayerAt]) -> dict[LayerAt, Tensor]:
    """As ``extract`` for any other network, by forward hooks.

    Outputs are copied, since a following in-place layer would change them; a module that is called more than once gives its
    last output, as in Brain-Score.
    """
    found: dict[LayerAt, Tensor] = {}

    def keep(at: LayerAt) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"{at}: the layer's output is a {type(output).__name__}, not one tensor; choose a layer inside it"
                )
            found[at] = output.detach().clone()

        return hook

    handles = [model.get_submodule(at.layer).register_forward_hook(keep(at)) for at in layers]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    missed = [str(at) for at in layers if at not in found]
    if missed:
        raise ValueError(
            f"{', '.join(missed)}: not called in a forward pass of {type(model).__name__}; choose another layer"
        )
    return found
