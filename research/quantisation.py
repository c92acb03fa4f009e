"""Compare weights in fewer bits: PSNR to fp32 of the same seed, without reuse, with it, and with fewer KV bits.

    python -m research.quantisation --model skyreels

Medians over held-out captions of moving shapes; the VAE is in fp32 throughout.
"""

import argparse
from dataclasses import replace
from functools import cache
from statistics import median

import torch
from torch import nn

from flowcache import Trace
from flowcache.files import markdown_table
from flowcache.quantize import FORMATS, plain_parts
from flowcache.video import Frames

from .compare import compare, main, positive, write_results
from .runs import Model, find_model, new_parser
from .train_small.moving_shapes import read_held_out

FRAMES, STEPS = {"skyreels": 57, "magi": 72}, 16
#: Bits of the KV cache under ``fast``, by name.
CACHES = {"fast": {}, "fast, KV 8 bits": {"kv_bits": 8}, "fast, KV 4 bits": {"kv_bits": 4}}
METHODS = ("no reuse", *CACHES)
WEIGHTS = ("fp32", "bf16", *FORMATS, "fp8 cast to bf16")
PLAIN = "fp32, no reuse"


def change_weights(model: Model, weights: str) -> Model:
    """The model with transformer and text encoder in another type."""
    if weights in FORMATS:
        return replace(model, adapter=replace(model.adapter, loading=replace(model.adapter.loading, quantize=weights)))
    made = replace(model)
    if weights != "fp32":
        made.pipeline = type(model.pipeline).from_pretrained("small", torch_dtype=torch.bfloat16)
        made.pipeline.register_modules(vae=model.pipeline.vae)
        made.pipeline.set_progress_bar_config(disable=True)
    if weights == "fp8 cast to bf16":
        made.pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    return made


def count_mib(module: nn.Module) -> float:
    return sum(part.nbytes for weight in module.parameters() for part in plain_parts(weight)) / 2**20


def bench(args: argparse.Namespace) -> str:
    args.num_frames, args.steps = args.num_frames or FRAMES[args.model], args.steps or STEPS
    plain, prompts = find_model(args), read_held_out()
    if not plain.adapter.is_small:
        raise ValueError("checkpoint: expected the small one, for which the captions are.")
    configs = {name: plain.configure("flowcache", "fast", **options) for name, options in CACHES.items()}
    configs["no reuse"] = plain.configure(plain.no_reuse)

    @cache
    def load(weights: str) -> Model:
        return change_weights(plain, weights)

    def make(name: str, seed: int) -> tuple[Frames, Trace]:
        weights, _, method = name.partition(", ")
        return load(weights).video(prompts[seed], seed, configs[method], Trace(method=name))

    names = [f"{weights}, {method}" for weights in WEIGHTS for method in METHODS]
    video = {name: str(vars(args)[name]) for name in ("model", "num_frames", "steps")}
    settings = {name: {**video, "name": name} for name in names}
    runs = compare(make, names, range(args.captions), [PLAIN], args.outdir, settings)
    rows = []
    for weights in WEIGHTS:
        pipeline = load(weights).pipeline
        cells = [f"{count_mib(part):.2f}" for part in (pipeline.transformer, pipeline.text_encoder)]
        for method in METHODS:
            found = [run.psnr[PLAIN] for run in runs if run.method == f"{weights}, {method}" and PLAIN in run.psnr]
            cells.append(f"{median(found):.1f} dB" if found else "")
        rows.append([weights, *cells])
    titles = ["weights", "transformer, MiB", "text encoder, MiB", *METHODS]
    return write_results(args, "quantisation", markdown_table(titles, rows), runs)


if __name__ == "__main__":
    parser = new_parser(__doc__, "quantisation_MODEL", "57; magi: 72", steps="16")
    parser.add_argument("--captions", type=positive, default=8, help="held-out captions, the first ones (default: 8)")
    main(parser, bench)
