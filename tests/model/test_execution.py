"""CNNF under what training uses: autocast, channels_last, torch.compile, second derivatives, DistributedDataParallel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from cnnf_brain import CNNF, small_net
from cnnf_brain.model.state import feedback_losses

OPTIONS = {"iterations": 2, "step": 0.5, "match_norm": True}


def network(**options: Any) -> CNNF:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    return CNNF(layers, **{**OPTIONS, **options})


def test_autocast_bfloat16_is_close_to_float32() -> None:
    model, x = network(), torch.randn(4, 3, 12, 12)
    exact = model.unroll(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model.unroll(x, return_reconstruction=True, return_states=True, return_consistency=True)
        terms = feedback_losses(model, result, torch.arange(4))
    assert result.logits.dtype == torch.bfloat16
    assert torch.allclose(result.logits[0].float(), exact[0], atol=0.02, rtol=0.02)
    assert result.logits.isfinite().all()
    total = sum(values.float().sum() for values in terms.values())
    total.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_channels_last_gives_the_same_numbers_and_keeps_the_format() -> None:
    model, x = network().double(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    expected = model.unroll(x, return_layers=["3@2"])
    moved = model.to(memory_format=torch.channels_last)
    result = moved.unroll(x.to(memory_format=torch.channels_last), return_layers=["3@2"])
    assert torch.allclose(result.logits, expected.logits, rtol=1e-10)
    ((_, map_),) = result.layers.items()
    assert map_.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore")
def test_compiled_as_one_graph_it_gives_the_same_values_and_gradients() -> None:
    model, x = network(), torch.randn(4, 3, 12, 12)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True)
    out = compiled(x)
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-6)
    out.square().sum().backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())  # type: ignore[arg-type]


@pytest.mark.parametrize("match_layers", [False, True])
def test_gradients_of_gradients_through_the_whole_loop(match_layers: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    model = CNNF(layers, **OPTIONS, match_layers=match_layers)  # type: ignore[arg-type]
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def run(image: Any, *parameters: Any) -> Any:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (image,))

    assert torch.autograd.gradcheck(run, (x, *values))
    assert torch.autograd.gradgradcheck(run, (x, *values))


def test_batch_of_one_and_the_small_net() -> None:
    model = small_net(iterations=2).eval()
    assert sum(p.numel() for p in model.parameters()) == 1_199_648 + 234  # weights and biases as counted by hand
    x = torch.randn(3, 1, 28, 28)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), rtol=1e-3, atol=1e-4)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    total = Total(network().double())
    x, labels = _batch()
    part = slice(2 * rank, 2 * rank + 2)
    parallel = nn.parallel.DistributedDataParallel(total)  # a name of its own: it must live until the gradients are summed
    parallel(x[part], labels[part]).backward()
    if rank == 0:
        torch.save([p.grad for p in total.parameters()], f"{folder}/gradients.pt")
    dist.destroy_process_group()


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64), torch.arange(4)


class Total(nn.Module):
    """The sum of all losses as a module: DistributedDataParallel sums the gradients of what its ``forward`` calls."""

    def __init__(self, model: CNNF) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        result = self.model.unroll(x, return_reconstruction=True, return_states=True)
        return sum(values.sum() for values in feedback_losses(self.model, result, labels).values())  # type: ignore[return-value]


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    total = Total(network().double())
    total(*_batch()).backward()
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for found, p in zip(gradients, total.parameters(), strict=True):
        assert torch.allclose(found, p.grad, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
