"""Sample held-out captions from a small checkpoint, to judge by eye and by a probe whether it follows them.

    python -m research.train_small.judge --model magi --checkpoint outputs/magi/checkpoint

Nothing is reused. Of SkyReels-V2, every other video has full attention, the rest are causal.
"""

import argparse

from tqdm import tqdm

from flowcache import Trace
from flowcache.files import markdown_table
from flowcache.video import contact_sheet

from ..compare import main, positive, write_results
from ..runs import find_model, new_parser
from .moving_shapes import read_held_out
from .shape_probe import NAMED, read_caption, read_clip


def bench(args: argparse.Namespace) -> str:
    model, captions = find_model(args), read_held_out()[: args.captions]
    plain = [method for method in ("vanilla", "causal") if method in model.adapter.traits.methods]
    shown, readings, rows = {}, [], []
    for number, caption in enumerate(tqdm(captions, unit="video")):
        method = plain[number % len(plain)]
        frames, _ = model.video(caption, number, model.configure(method), Trace(method=method))
        shown[f"{caption} ({method})"] = frames
        said, reading = read_caption(caption), read_clip(frames)
        words = {name: getattr(reading, name) for name in NAMED}
        readings.append({"caption": caption, "method": method, **words, "overlap": reading.overlap})
        cells = [word if word == said[name] else f"**{word}**" for name, word in words.items()]
        rows.append([caption, *cells, f"{reading.overlap[said['form']]:.2f}"])
    contact_sheet(shown, args.outdir / "samples.png", columns=12)
    right = [sum("**" not in row[1 + place] for row in rows) for place in range(len(NAMED))]
    overlap = sum(float(row[-1]) for row in rows) / len(rows)
    rows.append(["right", *(f"{count} of {len(captions)}" for count in right), f"{overlap:.2f}"])
    return write_results(args, "fidelity", markdown_table(["caption", *NAMED, "overlap"], rows), readings)


if __name__ == "__main__":
    parser = new_parser(__doc__, "fidelity_MODEL", "97; magi: 96", models=("skyreels", "magi", "self_forcing"))
    parser.add_argument("--captions", type=positive, default=20, help="the first held-out ones (default: 20)")
    main(parser, bench)
