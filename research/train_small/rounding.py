"""Round the weights of a checkpoint's transformer, so that the repository holds them in fewer bytes.

    python -m research.train_small.rounding outputs/magi/checkpoint --out outputs/rounded

Weights of 7 significant bits take 0.7 of the repository that fp16 takes.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcache.files import replaced_when_done, write_json

#: Folders of the transformer: SkyReels-V2's and MAGI-1's.
FOLDERS = ("transformer", "inference_weight.distill")


def round_significant(tensor: Tensor, bits: int) -> Tensor:
    """Round every value to ``bits`` significant bits."""
    mantissa, exponent = torch.frexp(tensor.float())
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).to(tensor.dtype)


def round_checkpoint(checkpoint: Path, out: Path, bits: int) -> None:
    """Copy ``checkpoint`` to the new folder ``out`` with rounded weights of the transformer."""
    shutil.copytree(checkpoint, out)
    for path in (file for folder in FOLDERS for file in (out / folder).glob("*.safetensors")):
        rounded = {name: round_significant(tensor, bits) for name, tensor in load_file(path).items()}
        with replaced_when_done(path) as temporary:
            save_file(rounded, temporary, {"format": "pt"})
    record = json.loads((out / "training.json").read_text())
    record["transformer"]["significant_bits"] = bits
    write_json(out / "training.json", record)


if __name__ == "__main__":
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("checkpoint", type=Path, help="folder of a finished training")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the rounded checkpoint")
    parser.add_argument("--bits", type=int, default=7, help="significant bits of a weight (default: 7; fp16 has 11)")
    args = parser.parse_args()
    round_checkpoint(args.checkpoint, args.out, args.bits)
