"""A model of random weights and a solver, for tests of the loop."""

import torch

from flowcache.chunk_model import ChunkModel, Solver
from flowcache.kv.layout import CacheLayout


class RandomModel(ChunkModel):
    """One attention layer with random weights; every chunk has tokens of one frame each."""

    num_branches, bidirectional, runs_whole_window = 1, False, False

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(3, 4, 8, generator=generator) / 2
        self.out = torch.randn(8, 4, generator=generator) / 3

    def cache_layout(self):
        return CacheLayout(1, 1, 2, 4)

    def num_tokens(self, num_frames):
        return num_frames

    def condition_timestep(self, level):
        return level

    def indicators(self, inputs):
        return [item.latents for item in inputs]

    def embed(self, inputs):
        return [item.latents[:, :, 0, 0].T.unsqueeze(0) for item in inputs]

    def blocks(self, inputs, tokens, cache):
        states = [[(x @ w).unflatten(-1, (2, 4)) for w in self.weights] for x in tokens]
        for item, (_, k, v) in zip(inputs, states, strict=True):
            cache.write(0, item.chunk, k, v)
        outputs = []
        for item, (q, _, _) in zip(inputs, states, strict=True):
            cache.observe(0, item.chunk, q)
            q, k, v = (t.transpose(1, 2) for t in (q, *cache.read(0, item.chunk, item.first_chunk)))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            outputs.append(attended.transpose(1, 2).flatten(2) @ self.out)
        return outputs

    def head(self, inputs, outputs):
        return [out[0].T.unflatten(1, (-1, 1, 1)) for out in outputs]

    def block_flops(self, num_tokens, num_keys, local_step=None):
        return num_tokens * num_keys

    def edge_flops(self, num_tokens, local_step=None):
        return 0.0


class StraightSolver(Solver):
    times = tuple(1.0 - 0.1 * i for i in range(11))

    def timestep(self, local_step):
        return 1.0 - 0.1 * local_step

    def step(self, chunk, local_step, latents, velocity):
        return latents + 0.1 * velocity
