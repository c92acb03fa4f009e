"""Average transformers that continued one checkpoint with different seeds, and round the average.

    python -m research.train_small.merge outputs/magi0/checkpoint outputs/magi1/checkpoint --out outputs/merged

Rounded weights compress: those of 7 significant bits take 0.7 of the repository that fp16 takes.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcache.files import write_json

#: Folders of the transformer: SkyReels-V2's and MAGI-1's.
FOLDERS = ("transformer", "inference_weight.distill")


def round_significant(tensor: Tensor, bits: int) -> Tensor:
    """Round every value to ``bits`` significant bits."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def merge(checkpoints: list[Path], out: Path, bits: int) -> None:
    """Write the first of ``checkpoints`` to ``out`` with the rounded average of all transformers.

    ValueError where trainings differ in more than the seed.
    """
    records = [json.loads((checkpoint / "training.json").read_text()) for checkpoint in checkpoints]
    seeds = [record["transformer"].pop("seed") for record in records]
    if any(record != records[0] for record in records):
        raise ValueError("checkpoints: expected trainings that differ in the seed alone; see their training.json")
    shutil.copytree(checkpoints[0], out)
    for path in (file for folder in FOLDERS for file in (out / folder).glob("*.safetensors")):
        first, *others = [load_file(checkpoint / path.relative_to(out)) for checkpoint in checkpoints]
        for name, tensor in first.items():
            mean = torch.stack([tensor.float(), *(other[name].float() for other in others)]).mean(dim=0)
            first[name] = round_significant(mean, bits).to(tensor.dtype)
        save_file(first, path, {"format": "pt"})
    records[0]["transformer"] |= {"seeds": seeds, "significant_bits": bits}
    write_json(out / "training.json", records[0])


if __name__ == "__main__":
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders of trainings")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the merged checkpoint")
    parser.add_argument("--bits", type=int, default=7, help="significant bits of a weight (default: 7; fp16 has 11)")
    args = parser.parse_args()
    merge(args.checkpoints, args.out, args.bits)
