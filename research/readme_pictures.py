"""Draw the README's pictures of methods from the folder of the tables.

bash scripts/reproduce_tables.sh --model small --prompts 3
python -m research.readme_pictures outputs/tables_small
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from flowcache.benchmark.pictures import find_albums
from flowcache.files import replaced_when_done
from flowcache.plots import reuse_map
from flowcache.video import read_video

from .train_small.moving_shapes import ASSETS

SKYREELS, MAGI = "skyreels_v2", "magi1"  # folders of the models
TEACACHE, PAPER = "TeaCache paper-fast", "FlowCache paper-fast"
FAST, TURBO = "FlowCache fast (ours)", "FlowCache turbo (ours)"
#: Methods of each picture.
RACE = ("vanilla", TEACACHE, PAPER, FAST)
FRAMES = {
    "four_ways.png": (SKYREELS, ("vanilla", "causal, no reuse", TEACACHE, PAPER, FAST)),
    "magi_ways.png": (MAGI, ("vanilla", TEACACHE, PAPER, FAST, TURBO)),
}
#: Frames a second of the race; more take more bytes than the picture is worth.
RACE_FPS = 6


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("run_dir", type=Path, help="folder of the tables, with videos of both models")
    parser.add_argument("--outdir", type=Path, default=ASSETS, help="folder of the pictures (default: assets)")
    args = parser.parse_args()
    albums = {album.folder: album for album in find_albums(args.run_dir)}
    with TemporaryDirectory() as folder:
        place = Path(folder)
        for name, (model, methods) in FRAMES.items():
            chosen = replace(albums[model], takes={method: albums[model].takes[method] for method in methods})
            chosen.draw_frames(place / name)
        reuse_map(albums[SKYREELS].takes[FAST].trace, place / "reuse_map.png")
        for path in place.glob("*.png"):
            picture = Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE)
            save(picture, args.outdir / path.name, optimize=True)
        race = replace(albums[SKYREELS], takes={method: albums[SKYREELS].takes[method] for method in RACE})
        race.write_race(place / "race.mp4")
        frames, fps = read_video(place / "race.mp4")
    first, *rest = [Image.fromarray(frame) for frame in frames[:: round(fps / RACE_FPS)]]
    animation = {"save_all": True, "append_images": rest, "duration": 1000 // RACE_FPS, "loop": 0}
    # a GIF of the same size shows 32 colours in more than twice the bytes
    save(first, args.outdir / "race.webp", quality=70, method=6, minimize_size=True, **animation)


def save(picture: Image.Image, path: Path, **options: object) -> None:
    with replaced_when_done(path) as temporary:
        picture.save(temporary, **options)


if __name__ == "__main__":
    main()
