"""The model of several GPUs against what processes count."""

import pytest
from launched import run_in_group

from flowcache import Trace
from flowcache.benchmark.scaling import Video
from flowcache.cli import find_model, prepare_video
from flowcache.parallel import Group
from flowcache.parallel.efficiency import predict

PROCESSES = 2
_SKYREELS = "--weights small --num_frames 33 --inference_steps 6 --ar_step 2 --causal_block_size 2"
_MAGI = "--weights small --num_frames 72 --num_steps 8"
#: Model, options, and parts of guidance.
CASES = {
    "tokens": ("skyreels_v2", f"{_SKYREELS} --method flowcache", 1),
    "whole window": ("skyreels_v2", f"{_SKYREELS} --method vanilla", 1),
    "guidance": ("skyreels_v2", f"{_SKYREELS} --method flowcache", 2),
    "MAGI-1": ("magi1", f"{_MAGI} --method flowcache", 1),
}


def make(group: Group, model: str, options: str, cfg_size: int) -> list[int]:
    """Make a video; bytes and collectives of this process."""
    job = prepare_video(find_model(model), [*options.split(), "--dry_run", "--device", "cpu"])
    chosen, before = job.sampler.model, (group.traffic.nbytes, group.traffic.collectives)
    pipeline = chosen.load("cpu", Group())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.parallelize(group, cfg_size)
    for _ in chosen.stream(pipeline, job.prompt, job.start, job.sampler.config, Trace(), None):
        pass
    return [group.traffic.nbytes - before[0], group.traffic.collectives - before[1]]


def make_all(group: Group) -> dict[str, list[int]]:
    return {name: make(group, *case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """What the first process sent, by case."""
    return run_in_group(tmp_path_factory.mktemp("traffic"), make_all, PROCESSES)


@pytest.mark.parametrize("name", CASES)
def test_predicted_bytes_are_those_of_a_run(counted, name):
    """Only the text, and a few numbers for each clean chunk, are not in the model."""
    model, options, cfg_size = CASES[name]
    video = Video(find_model(model), options, "cpu")
    denoising, decoding = predict(video.work, PROCESSES, cfg_size=cfg_size).sent, video.plan_decoding(PROCESSES)[1]
    nbytes, collectives = counted[name]
    assert 0 <= nbytes - denoising.nbytes - decoding.nbytes < 0.01 * nbytes
    assert 0 <= collectives - denoising.collectives - decoding.collectives < 15
