"""FlowCache on a pipeline of diffusers that is already loaded.

python examples/from_pipe.py
"""

import sys

import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

import flowcache
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline
from skyreels_v2.checkpoint import SMALL  # or "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"

existing = SkyReelsV2DiffusionForcingPipeline.from_pretrained(SMALL)
pipe = FlowCacheSkyReelsV2Pipeline.from_pipe(existing)  # shares the weights
flowcache.enable(pipe, preset="fast", kv_budget=1)
video = pipe(
    "a red circle moves right over a dark background",
    num_frames=33,
    height=64,
    width=64,
    num_inference_steps=10,
    ar_step=5,
    generator=torch.Generator().manual_seed(0),
)
video.save("circle.mp4")
video.trace.reuse_map("circle.png")
sys.stdout.write(f"reused {video.trace.reuse_ratio:.0%} of chunk steps; circle.mp4 and circle.png written\n")
