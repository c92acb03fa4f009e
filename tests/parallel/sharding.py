"""Videos with weights spread over some processes, compared with whole ones; prints bytes and verdicts as JSON."""

import json
import sys
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from flowcache.parallel import Group
from flowcache.parallel.sharding import shard_blocks
from flowcache.pipeline import FlowCachePipeline
from magi1 import load_pipeline as load_magi
from magi1 import resolve_model
from magi1.adapter import CONFIG_FILE, FOLDER
from skyreels_v2 import load_pipeline as load_skyreels

SKYREELS = {
    "num_frames": 17,
    "num_inference_steps": 4,
    "ar_step": 1,
    "causal_block_size": 2,
    "height": 32,
    "width": 48,
}
MAGI = {"num_frames": 24, "num_inference_steps": 4, "height": 32, "width": 48}


def held_bytes(pipeline: FlowCachePipeline) -> int:
    """Bytes of the blocks' weights in this process."""
    weights = pipeline.transformer.blocks.parameters()
    return sum((weight.to_local() if isinstance(weight, DTensor) else weight).nbytes for weight in weights)


def check(group: Group, whole: FlowCachePipeline, sharded: FlowCachePipeline, options: dict[str, Any]) -> dict:
    made = []
    for pipeline in (whole, sharded, sharded):
        pipeline.set_progress_bar_config(disable=True)
        pipeline.parallelize(group)
        made.append(pipeline("a red circle", output_type="latent", **options).latents)
    same = all(torch.equal(made[0], latents) for latents in made[1:])
    return {"same": all(group.gather_objects(same)), "whole": held_bytes(whole), "held": held_bytes(sharded)}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = Group(dist.get_rank(), dist.get_world_size())
    choices, magi = ({}, {"shard_weights": True}), resolve_model(FOLDER / CONFIG_FILE, model="small")
    found = {
        "skyreels_v2": check(group, *(load_skyreels("small", "cpu", group, **each) for each in choices), SKYREELS),
        "magi1": check(group, *(load_magi(magi, "cpu", group=group, **each) for each in choices), MAGI),
    }
    # As on GPUs: some weights of a block of MAGI-1 stay in fp32.
    mixed = [load_magi(magi, "cpu", group=group) for _ in choices]
    for pipeline in mixed:
        pipeline.transformer.to(torch.bfloat16)
    shard_blocks(mixed[1].transformer.blocks, group, torch.device("cpu"))
    found["magi1 in bf16"] = check(group, *mixed, MAGI)
    if group.is_first:
        sys.stdout.write(json.dumps(found) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
