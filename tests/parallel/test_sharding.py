"""Weights that are spread over processes: the same videos, and half of the bytes in each of two."""

from typing import Any

import pytest
import torch
from launched import run_in_group
from torch.distributed.tensor import DTensor

from flowcache.loading import LoadOptions
from flowcache.parallel import Group
from flowcache.parallel.sharding import check_sharding, shard_blocks
from flowcache.pipeline import FlowCachePipeline
from magi1 import load_pipeline as load_magi
from magi1 import resolve_model
from magi1.adapter import CONFIG_FILE, FOLDER
from skyreels_v2 import load_pipeline as load_skyreels

PROCESSES = 2
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


def compare(group: Group) -> dict[str, dict]:
    """Verdict and bytes of each model."""
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
    return found | {"magi1 in bf16": check(group, *mixed, MAGI)}


def test_spread_weights_make_the_same_videos(tmp_path):
    found = run_in_group(tmp_path, compare, PROCESSES)
    assert len(found) == 3
    for name, case in found.items():
        assert case["same"], name
        assert 0.5 <= case["held"] / case["whole"] < 0.51, name


@pytest.mark.parametrize("other", [{"offload": True}, {"compile": True}, {"quantize": "int8"}])
def test_what_spread_weights_exclude_is_named(other):
    with pytest.raises(ValueError, match=f"shard_weights: expected no {min(other)} "):
        LoadOptions(shard_weights=True, **other)


def test_a_single_process_cannot_spread_weights():
    with pytest.raises(ValueError, match="shard_weights: expected several processes"):
        check_sharding(1)
