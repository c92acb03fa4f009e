"""Runs that are killed and continue: the same file as of a run without a break."""

import os
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from flowcache import Trace
from flowcache.cli import find_model, prepare_video

from .bench import Bench, Check, Row, require

MODELS = {"skyreels_v2": "SkyReels-V2", "magi1": "MAGI-1", "self_forcing": "Self-Forcing"}

_WHOLE = {
    "skyreels_v2": "--preset fast --num_frames 97 --inference_steps 50 --ar_step 5 --causal_block_size 5",
    "magi1": "--preset fast --num_frames 192 --num_steps 64",
    "self_forcing": "--num_output_frames 60 --use_compress --budget_block 3",
}
_REDUCED = {
    "skyreels_v2": "--preset fast --num_frames 33 --inference_steps 6 --ar_step 2 --causal_block_size 2"
    " --height 32 --width 32",
    "magi1": "--preset fast --num_frames 72 --num_steps 8 --video_size_h 32 --video_size_w 32",
    "self_forcing": "--num_output_frames 12 --use_compress --budget_block 2 --height 32 --width 32",
}


def checks(bench: Bench) -> Iterator[tuple[str, Check]]:
    for name, title in MODELS.items():
        yield title, partial(_kill_and_continue, bench, name)


def make_video(model: str, words: list[str]) -> None:
    job = prepare_video(find_model(model), words)
    job.sampler.shows_steps = False
    job.run()


def _kill_and_continue(bench: Bench, model: str, row: Row) -> None:
    options = (_REDUCED if bench.reduced else _WHOLE)[model]
    words = f"{options} --weights small --device {bench.device} --kv_offload".split()
    with TemporaryDirectory() as folder:
        whole, broken = (Path(folder) / f"{name}.mp4" for name in ("whole", "broken"))
        _wait(_start(bench, model, [*words, "--output_path", str(whole)]))
        again = [*words, "--output_path", str(broken), "--resume"]
        process = _start(bench, model, again)
        while process.is_alive() and not broken.with_suffix(".resume.pt").exists():
            time.sleep(0.002)
        process.kill()
        process.join()
        require(not broken.exists(), "the run was done before it was killed")
        require(broken.with_suffix(".resume.pt").exists(), "the run failed before it saved a state")
        _wait(_start(bench, model, again))
        steps = Trace.load(broken.with_suffix(".trace.json")).steps
        row["steps"], row["bytes"] = len(steps), os.path.getsize(broken)
        require(broken.read_bytes() == whole.read_bytes(), "the file differs from that of a run without a break")


def _start(bench: Bench, model: str, words: list[str]) -> BaseProcess:
    context = get_context("spawn" if bench.on_cuda else "fork")
    process = context.Process(target=make_video, args=(model, words))
    process.start()
    return process


def _wait(process: BaseProcess) -> None:
    process.join()
    require(process.exitcode == 0, f"a run ended with exit code {process.exitcode}")
