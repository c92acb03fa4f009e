"""FlowCache under a toy model: one attention layer, random weights, a token for each latent frame."""

import sys

import torch

from flowcache import Denoiser, FlowCacheConfig, KVCompressionConfig, StaircaseSchedule, cut_window
from flowcache.chunk_model import CacheLayout, ChunkModel, Solver

CHANNELS, HEADS, WIDTH, STEPS = 4, 2, 16, 10


class ToyModel(ChunkModel):
    num_branches, bidirectional, runs_whole_window = 1, False, False
    embedding, projections = torch.randn(CHANNELS, HEADS * WIDTH) / 2, torch.randn(3, HEADS * WIDTH, HEADS * WIDTH) / 6

    def cache_layout(self):
        return CacheLayout(num_layers=1, num_branches=1, num_heads=HEADS, head_dim=WIDTH)

    def num_tokens(self, num_frames):
        return num_frames

    def embed(self, inputs):  # latents [channels, frames, 1, 1] to tokens [branches, tokens, features]
        return [item.latents.flatten(1).T.unsqueeze(0) @ self.embedding for item in inputs]

    def blocks(self, inputs, tokens, cache):
        states = [[(x @ w).unflatten(-1, (HEADS, WIDTH)) for w in self.projections] for x in tokens]
        outputs = []
        for item, (queries, keys, values) in zip(inputs, states, strict=True):
            cache.write(0, item.chunk, keys, values)
            cache.observe(0, item.chunk, queries)  # compression scores tokens by these
            seen = (x.transpose(1, 2) for x in (queries, *cache.read(0, item.chunk, item.first_chunk)))
            outputs.append(torch.nn.functional.scaled_dot_product_attention(*seen).transpose(1, 2).flatten(2))
        return outputs

    def head(self, inputs, outputs):  # velocities [channels, frames, 1, 1]
        return [(x[0] @ self.embedding.T / WIDTH).T.unflatten(1, (-1, 1, 1)) for x in outputs]

    def block_flops(self, num_tokens, num_keys, local_step=None):
        return 4.0 * num_tokens * HEADS * WIDTH * (num_keys + 2 * HEADS * WIDTH)

    def edge_flops(self, num_tokens, local_step=None):
        return 4.0 * num_tokens * CHANNELS * HEADS * WIDTH


class Euler(Solver):
    times = tuple(1 - step / STEPS for step in range(STEPS + 1))

    def timestep(self, local_step, chunk=0):
        return 1000 * self.times[local_step]

    def step(self, chunk, local_step, latents, velocity):
        return latents - velocity / STEPS


denoiser = Denoiser(ToyModel(), FlowCacheConfig(compression=KVCompressionConfig(budget=2)))
window = cut_window(torch.randn(CHANNELS, 24, 1, 1), chunk_frames=3)
clean = list(denoiser.run(window, StaircaseSchedule(len(window.chunks), STEPS, stride=2), Euler()))
sys.stdout.write(f"{len(clean)} chunks; {denoiser.trace.reuse_ratio:.0%} of their steps did not run the model\n")
