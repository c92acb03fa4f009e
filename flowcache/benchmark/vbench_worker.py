"""Score one dimension with the ``vbench`` package, and write ``RESULTS/DIMENSION_eval_results.json``.

    python vbench_worker.py VIDEOS RESULTS DIMENSION DEVICE FULL_INFO

It runs in VBench's environment, and therefore imports nothing of this project.
"""

import sys

import torch
from vbench import VBench

if __name__ == "__main__":
    videos, results, dimension, device, full_info = sys.argv[1:]
    scorer = VBench(torch.device(device), full_info, results)
    scorer.evaluate(videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard")
