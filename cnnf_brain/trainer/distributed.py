"""The processes of a run: one, or as many as torchrun has started, on one machine or several."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cnnf_brain.images import pick_device


@dataclass(frozen=True)
class Ranks:
    """This process among all. ``group`` exchanges numbers between processors (gloo), also where gradients go over NCCL."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in every one of them, on the CPU in float64."""
        values = values.detach().to("cpu", torch.float64)
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def union(self, mapping: dict[str, str]) -> dict[str, str]:
        """The entries of all ranks, in every one of them, sorted."""
        parts = [mapping] * self.size
        if self.size > 1:
            dist.all_gather_object(parts, mapping, group=self.group)
        return dict(sorted(item for part in parts for item in part.items()))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 first, so that the others find in the cache what it has listed and downloaded."""
        if self.rank:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier(group=self.group)


def meeting_point() -> Any:
    """Where ranks find each other. torchrun's store outlives its workers: after a restart a new worker may read the address of a
    dead one there, so each attempt has a part of its own. Not on several machines, each of which counts attempts for itself."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://")))
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store) if alone else store


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun's environment variables tell of; a single one without them.

    ``device``: "cuda" (rank r of a machine takes its card r; gradients over NCCL), "cpu" (gloo), or "auto": "cuda" where there
    is a GPU, else "cpu". A ValueError where there is no such device, or a machine has more ranks than cards.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    # not ``pick_device``, which would take memory of the first card for every rank
    place = torch.device(device) if re.fullmatch(r"cuda(:\d+)?", device) else pick_device(device)
    if place.type == "cuda":
        cards = torch.cuda.device_count()
        number = local if place.index is None else place.index
        if number >= cards:
            raise ValueError(
                f"device {device}: this machine has {cards} CUDA devices, and this process would take number "
                f"{number}; start at most {cards} processes on it, or try the device cpu"
            )
        place = torch.device("cuda", number)
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(device=place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=meeting_point(), rank=rank, world_size=size)
    try:
        yield Ranks(rank, size, place, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()
