"""Make videos with all processes of a launcher; the first prints what each process sent, as JSON by case."""

import json
import logging
import sys

import torch
from torch import distributed

from flowcache import Trace
from flowcache.cli import find_model, prepare_video
from flowcache.parallel import Group


def make(group: Group, model: str, options: str, cfg_size: int) -> list[int]:
    """Bytes and collectives of this process."""
    job = prepare_video(find_model(model), [*options.split(), "--dry_run", "--device", "cpu"])
    chosen, before = job.sampler.model, (group.traffic.nbytes, group.traffic.collectives)
    pipeline = chosen.load("cpu", Group())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.parallelize(group, cfg_size)
    for _ in chosen.stream(pipeline, job.prompt, job.start, job.sampler.config, Trace(), None):
        pass
    return [group.traffic.nbytes - before[0], group.traffic.collectives - before[1]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    distributed.init_process_group("gloo")
    processes = Group(distributed.get_rank(), distributed.get_world_size())
    sent = {name: make(processes, *case) for name, case in json.loads(sys.argv[1]).items()}
    gathered = processes.gather_objects(sent)
    if processes.is_first:
        sys.stdout.write(json.dumps(gathered[0]) + "\n")
    distributed.destroy_process_group()
