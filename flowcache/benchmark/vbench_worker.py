"""Scores one dimension with the ``vbench`` package; run by the interpreter of an environment that has it.

    python vbench_worker.py VIDEOS RESULTS DIMENSION DEVICE FULL_INFO

It imports nothing of this project, whose packages do not go together with VBench's. Writes
``RESULTS/DIMENSION_eval_results.json``.
"""

import sys

import torch
from vbench import VBench


def main():
    """Score; VBench writes the result."""
    videos, results, dimension, device, full_info = sys.argv[1:]
    scorer = VBench(torch.device(device), full_info, results)
    scorer.evaluate(videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard")


if __name__ == "__main__":
    main()
