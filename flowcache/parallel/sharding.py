"""Weights spread over the processes of a video, by FSDP2."""

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from .group import Group


def check_sharding(processes: int) -> None:
    """Refuse a single process."""
    if processes == 1:
        remedy = "start with torchrun --nproc_per_node 2, or leave it out"
        raise ValueError(f"shard_weights: expected several processes for a video, got 1; {remedy}.")


def shard_blocks(blocks: nn.ModuleList, group: Group, device: torch.device) -> None:
    """Spread the weights of blocks over processes, in place: each gathers a block's only while that runs.

    A process holds its share on the device; blocks in host memory move there one after another, so that the device
    never has to hold all of them. Nothing is sent here.
    """
    from torch.distributed.fsdp import fully_shard  # which takes long to import

    check_sharding(group.size)
    mesh = DeviceMesh.from_group(group.process_group or dist.group.WORLD, device.type)
    for block in blocks:
        block.requires_grad_(False)  # with gradients, all weights of a block would need one type
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
