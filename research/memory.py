"""Make the tables of the READMEs: which video fits on which card, by ``flowcache.memory.estimate``.

    python -m research.memory --model skyreels_v2
    python -m research.memory --model magi1 --check
    python -m research.memory --only "540P, vanilla" --more "" "--quantize int8" "--quantize int4 --offload"

``--check`` counts every call of the model, which takes minutes, and puts the estimate beside it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from flowcache.cli import MODELS, find_model, prepare_video
from flowcache.files import markdown_table
from flowcache.memory import GIB, Estimate, estimate

#: Memory of cards, GB as they are sold, which is GiB but for the largest.
CARDS = {16: 16, 24: 24, 32: 32, 48: 48, 80: 80, 141: 140}

_SKYREELS = "--weights Skywork/SkyReels-V2-DF-{} --inference_steps 50 --ar_step 5 --causal_block_size 5"
_MAGI = "--load sand-ai/MAGI-1/ckpt/magi/{0} --config_file config/single_run/{0}.json"
_STREAM = "--method flowcache --preset balanced --streaming --num_frames 377 --use_compress --budget_block 4"
_KEEP_ONE = "--compress_kv_cache true --total_cache_chunk_nums 5"
_COMPRESS = "--method flowcache --preset balanced --use_compress --budget_block 1"

#: Options of a video by its name in the table, and what may be added to them, the least loss first.
ROWS = {
    "skyreels_v2": {
        f"{size}, {name}": f"{_SKYREELS.format(size)} {options}"
        for size in ("1.3B-540P", "14B-540P", "14B-720P")
        for name, options in {
            "vanilla": "--method vanilla",
            "fast": "--method flowcache --preset fast",
            "kvcompress": _COMPRESS,
            **({"streaming, 377 frames": _STREAM} if size == "1.3B-540P" else {}),
        }.items()
    },
    "magi1": {
        f"{size}, {name}": f"{_MAGI.format(size)} --num_frames {options}"
        for size in ("4.5B_distill", "4.5B_distill_quant", "4.5B_base", "24B_distill_quant", "24B_base")
        for name, options in {
            "96 frames": "96",
            **({"240 frames": "240", "240, budget 1": f"240 {_KEEP_ONE}"} if size == "4.5B_distill" else {}),
        }.items()
    },
}
MORE = {"skyreels_v2": ("", "--offload", "--offload --vae_tiling"), "magi1": ("", "--offload")}


def plan(model: str, words: Sequence[str], every_call: bool = False) -> Estimate:
    job = prepare_video(find_model(model), [*words, "--dry_run", "--device", "cuda"])
    return estimate(job.sampler.model, job.sampler.config, job.start, "cuda", every_call)


def describe_video(model: str, options: str, additions: Sequence[str] = ()) -> list[str]:
    """Memory with each addition, and the first one with which each card holds the video."""
    plans = {more: plan(model, f"{options} {more}".split()) for more in additions or MORE[model]}
    fitting = [[f"`{m}`" if m else "yes" for m, p in plans.items() if p.fits(size * GIB)] for size in CARDS.values()]
    first = next(iter(plans.values()))
    return [
        f"{first.kv / GIB:.1f}",
        *(f"{p.peak / GIB:.1f}" for p in plans.values()),
        *(f[0] if f else "–" for f in fitting),
    ]


def check_video(model: str, options: str, _: Sequence[str]) -> list[str]:
    counted, estimated = (plan(model, options.split(), every_call) for every_call in (True, False))
    ratio = estimated.peak / counted.peak
    return [f"{counted.peak / GIB:.2f}", f"{estimated.peak / GIB:.2f}", f"{100 * (ratio - 1):+.1f}%"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="skyreels_v2", help="default: skyreels_v2")
    parser.add_argument("--check", action="store_true", help="count every call, and compare")
    parser.add_argument("--only", default="", help="videos whose name contains this text")
    parser.add_argument("--more", nargs="+", help="options of the columns, each in quotes (default: those of READMEs)")
    args = parser.parse_args()
    additions = args.more or MORE[args.model]
    logging.disable(logging.WARNING)
    make = check_video if args.check else describe_video
    named = [f"GiB with `{more}`" if more else "GiB" for more in additions]
    header = ["counted, GiB", "estimate, GiB", "difference"]
    header = header if args.check else ["KV cache, GiB", *named, *(f"{card} GB" for card in CARDS)]
    rows = [
        [name, *make(args.model, options, additions)]
        for name, options in ROWS[args.model].items()
        if args.only in name
    ]
    sys.stdout.write(markdown_table(["video", *header], rows) + "\n")


if __name__ == "__main__":
    main()
