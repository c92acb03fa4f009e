"""Options of a single video, and what follows from them before a model is chosen."""

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .adapter import Adapter
from .command_line import output_file
from .methods import SELECTORS
from .options import Given
from .parallel.launch import Rank
from .prompt_schedule import PromptSchedule
from .prompts import check_prompt
from .registry import described
from .tuning import Target
from .video import Frames, VideoInfo, probe_video, read_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of a single video."""

    prompt: str | None = described("text to show (default: the model's)")
    prompt_schedule: str | None = described(
        'prompts and the seconds of the video from which they hold, in place of prompt: "0: PROMPT; 5s: PROMPT"'
    )
    image: Path | None = described("first frame")
    end_image: Path | None = described("last frame; needs --image")
    video_path: Path | None = described("video to continue")
    output_path: Path | None = described(
        "the mp4 (default: OUTDIR/EXPNAME/NAME.mp4, NAME from the prompt and all settings)"
    )
    outdir: Path = described("folder of the results", Path("outputs"))
    expname: str | None = described("folder within it (default: the model's package)")
    resume: bool = described("save the state as the video grows, and resume from it if it exists", False)
    target_speedup: float | None = described("times fewer FLOPs than vanilla; finds the best setting")
    target_psnr: float | None = described("dB to the same video without reuse; finds the fastest setting")
    profile: Path | None = described("file with the results of that search (default: in ~/.cache/flowcache)")
    device: str | None = described("cpu, cuda or cuda:1 (default: cuda if there is a GPU, otherwise cpu)")
    dry_run: bool = described("only what the video will need: memory and FLOPs; cuda needs no GPU then", False)
    rate: float | None = described("TFLOP/s of the device, for the time in a dry run")


def read_prompt(given: Given, model: Adapter) -> str | PromptSchedule:
    """The prompt, or the schedule of prompts, checked."""
    given.exclude("prompt", "prompt_schedule")
    if (text := given.get("prompt_schedule")) is not None:
        schedule = PromptSchedule.parse(text)
        schedule.check(model.clean_prompt, model.video)
        return schedule
    given.refuse_unread({"prompt_switch": "it needs prompt_schedule"})
    prompt = given.get("prompt", model.default_prompt).strip()
    if not prompt:
        raise ValueError("prompt: expected text, got an empty one.")
    check_prompt("prompt", prompt, model.clean_prompt)
    return prompt


def read_target(given: Given) -> Target | None:
    """The target of a search for settings, over method and preset of a script; None if no target is given."""
    speedup, psnr = given.get("target_speedup"), given.get("target_psnr")
    if speedup is None and psnr is None:
        given.refuse_unread({"profile": "it needs target_speedup or target_psnr"})
        return None
    target = Target(speedup=speedup, psnr=psnr)
    for name, value in (("method", "flowcache"), ("preset", None)):
        if name not in given.typed:
            given.override(name, value)
    if given.get("method") != "flowcache":
        raise ValueError(f"{target.flag}: expected method flowcache, got {given.get('method')}.")
    for name in given.pick(("preset", *SELECTORS)):
        raise ValueError(f"{target.flag} and {name} exclude each other: leave one of them out.")
    return target


def draw_seed(given: Given) -> bool:
    """Draw and log a seed for -1, as the original programs do; raises ValueError for a run to resume.

    Returns whether it was drawn; that of the first of several processes counts.
    """
    if given.get("seed") != -1:
        return False
    if given.get("resume"):
        raise ValueError("seed: expected a number to resume with, got -1, which draws one at each start.")
    given.values["seed"] = secrets.randbelow(2**32)
    logger.info("seed: %d was drawn; give it to make the same video again", given.values["seed"])
    return True


def read_inputs(given: Given) -> tuple[Mapping[str, Frames], VideoInfo | None]:
    """Images by their options, and size and rate of what the video starts with."""
    if given.get("end_image") and not given.get("image"):
        raise ValueError("end_image: expected image beside it, from which the video starts.")
    if given.get("video_path") and given.get("image"):
        raise ValueError("video_path: expected no image beside it; the video starts with one of them.")
    images, info = {}, None
    for name, path in given.pick(("end_image", "image", "video_path")).items():
        try:
            if name == "video_path":
                info = probe_video(path)
            else:
                images[name] = read_image(path)
                info = VideoInfo(1, None, *images[name].shape[:2])
        except ValueError as error:
            raise ValueError(f"{given.spelled[name]}: {error}") from error
    return images, info


def output_path(given: Given, model: type[Adapter], name: str, rank: Rank) -> Path:
    """Path of the video; the first process makes its folder, and raises ValueError if it cannot write there."""
    path, option = given.get("output_path"), "output_path"
    if path is None:
        folder = given.get("outdir", VideoOptions.outdir) / given.get("expname", model.package)
        path, option = folder / name, "outdir"
    elif path.name and path.suffix.lower() not in ("", ".mp4"):
        raise ValueError(f"output_path: expected a name that ends in .mp4, got {path}.")
    path = path if path.suffix or os.path.isdir(path) else path.with_suffix(".mp4")
    return output_file(option, path) if rank.is_first else path
