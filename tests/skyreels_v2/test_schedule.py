"""Staircase and noise grid against the tables of the original."""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from reference import Case

from flowcache import StaircaseSchedule
from skyreels_v2.solver import ChunkUniPC, noise_grid


@pytest.fixture(scope="module")
def tables(reference):
    return Case(reference, "schedule").info


def test_noise_grid(tables):
    prefix = "unipc_flow_shift"
    for name in (name for name in tables if name.startswith(prefix)):
        shift = float(name.removeprefix(prefix))
        for steps, table in tables[name].items():
            solver = ChunkUniPC(int(steps), shift)
            assert [solver.timestep(i) for i in range(int(steps))] == table["timesteps"]
            assert noise_grid(int(steps), shift) == pytest.approx(table["sigmas"], abs=1e-7)


def test_staircase(tables):
    for case in tables["cases"]:
        blocks = case["num_latent_frames"] // case["causal_block_size"]
        prefix = case["num_pre_ready"] // case["causal_block_size"]
        # a block starts at the latest when the one before it is finished
        stride = min(case["ar_step"], case["steps"])
        schedule = StaircaseSchedule(blocks, case["steps"], stride, prefix)
        if "error" in case:
            base = case["base"] // case["causal_block_size"]
            assert schedule.max_live > base, "too many live blocks for the window, as the original says"
            continue
        assert len(schedule) == case["rows"]
        for live, row, mask in zip(
            schedule, case["step_index_per_block"], case["update_mask_per_block"], strict=True
        ):
            assert sorted(live) == [block for block, moves in enumerate(mask) if moves]
            assert all(row[block] == local_step + 1 for block, local_step in live.items())


@pytest.mark.parametrize("steps, shift", [(1, 8.0), (2, 8.0), (3, 3.0), (8, 5.0), (50, 8.0)])
def test_solver_equals_diffusers(steps, shift):
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
    solver = ChunkUniPC(steps, shift, first_correction_as_original=False)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator) / 2
    theirs = torch.randn(1, 4, 3, 8, 8, generator=generator)
    ours = theirs[0].clone()
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = torch.einsum("ij,bj...->bi...", mix, theirs).sin()
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
        ours = solver.step(0, step, ours, torch.einsum("ij,j...->i...", mix, ours).sin())
    torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-5)
