"""Measure against published figures and benchmarks.

    python -m flowcache.benchmark flops
    python -m flowcache.benchmark physics_iq --generated_videos G --reference_videos R
    python -m flowcache.benchmark vbench --generated_videos G --environment ENV
    python -m flowcache.benchmark tables RUN_DIR
    python -m flowcache.benchmark plot RUN_DIR

``flops`` prints the paper's PFLOPs beside those that we count. ``physics_iq`` scores a folder of videos that
continue those of Physics-IQ, ``vbench`` one of videos of VBench's prompts; both write CSV and JSON.
``tables`` puts what a run left behind beside the paper's figures; ``plot`` draws its traces and plays its
videos side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..command_line import Parser, check_device, output_file, writable_folder
from ..extras import require
from ..running import run_checked
from .albums import Album, draw_album, find_albums
from .paper_flops import PaperFlops, markdown, registered_models
from .physics_iq import PARTS, Collection, PhysicsIQReport, check_views, find_views
from .run_folder import ModelRun, find_model_runs, read_commands
from .run_reports import measure_closeness, score_vbench
from .sample import SamplesFailed
from .tables import build_table
from .tables_files import markdown as markdown_tables
from .tables_files import save_tables
from .vbench import VBenchReport, check_environment, package_full_info, prepare_environment, score
from .vbench_prompts import DIMENSIONS, choose_dimensions, read_full_info

FLOPS_NOTE = (
    "Reused: the share of those chunk-steps that the paper's row leaves out, if each costs what they cost on "
    "average; empty where the row costs more than all of them."
)


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("flops", description="The paper's PFLOPs beside those that we count.")
    add = commands.add_parser("physics_iq", description="Score videos by Physics-IQ.").add_argument
    add("--generated_videos", type=Path, required=True, help="folder; names begin with the first take's id")
    add("--reference_videos", type=Path, required=True, help="folder of both takes, at the same rate")
    add(
        "--part", choices=PARTS, default=PARTS[0], help="seconds that count: last, if given frames come first"
    )
    add("--output", type=Path, help="of CSV and JSON, without suffix (default: GENERATED_VIDEOS/physics_iq)")
    add_vbench_flags(commands.add_parser("vbench", description="Score videos by VBench."))
    add_tables_flags(commands.add_parser("tables", description="The paper's tables, from a run's folder."))
    add_plot_flags(commands.add_parser("plot", description="Pictures of a folder with traces."))
    return parser


def add_vbench_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``vbench``."""
    add = parser.add_argument
    add("--generated_videos", type=Path, required=True, help="folder of PROMPT-INDEX.mp4 and nothing else")
    add("--environment", type=Path, required=True, help="Python environment with vbench; made if need be")
    add("--python", default=sys.executable, help="to make the environment with (default: this one)")
    add("--dimension", default="all", help="one, several with commas between them, or all (default)")
    add("--full_info", type=Path, help="prompts in VBench's format (default: those of the package)")
    add("--device", default="cuda", choices=["cuda", "cpu"], help="(default: cuda)")
    add("--output", type=Path, help="of CSV and JSON, without suffix (default: vbench, beside the folder)")


def add_tables_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``tables``."""
    add = parser.add_argument
    add("run_dir", type=Path, help="what scripts/reproduce_tables.sh, or sample_video.py --ways, left behind")
    add("--output", type=Path, help="of Markdown, CSV and JSON, without suffix (default: RUN_DIR/tables)")
    add("--again", action="store_true", help="measure again what is measured, such as when LPIPS was missing")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="to measure on")
    add(
        "--environment",
        type=Path,
        help="with vbench, made if need be (default: VBench is left out)",
    )
    add("--python", default=sys.executable, help="to make the environment with (default: this one)")


def add_plot_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``plot``."""
    add = parser.add_argument
    add("run_dir", type=Path, help="a folder with *.trace.json, at any depth")
    add("--output", type=Path, help="folder for the pictures (default: RUN_DIR/pictures)")
    add("--prompt", help="of the video to compare methods by (default: the first of which there are most)")


def flops(tables: Sequence[PaperFlops]) -> str:
    """What to print of the models' tables."""
    return "\n\n".join([*map(markdown, tables), FLOPS_NOTE])


def prepare_physics_iq(args: argparse.Namespace) -> tuple[Collection, dict[str, str]]:
    """Check all that was asked for, before any video is decoded; returns what ``check_views`` does.

    Raises:
        ValueError: one sentence that names the argument.
        Unavailable: OpenCV is not installed.
    """
    require("cv2", "Physics-IQ", "metrics")
    found = check_views(find_views(args.generated_videos, args.reference_videos))
    args.output = args.output or args.generated_videos / "physics_iq"
    output_file("output", Path(f"{args.output}.json"))
    return found


def run_physics_iq(args: argparse.Namespace, collection: Collection, broken: dict[str, str]) -> str:
    """Measure, write, and return what to say.

    Raises:
        SamplesFailed: some videos could not be measured; the others were.
    """
    report = PhysicsIQReport(collection.absent, broken)
    for view in tqdm(collection.views, unit="view"):
        report.add(view, args.part)
    if not report.views:
        raise SamplesFailed("no video could be scored:", report.broken)
    return _say(report, args.output)


def _say(report: PhysicsIQReport | VBenchReport, output: Path) -> str:
    """Write a report and return what to say of it.

    Raises:
        SamplesFailed: it lacks broken videos.
    """
    text = "\n".join([report.text(), *map(str, report.save(output))])
    if report.broken:
        raise SamplesFailed(f"{len(report.broken)} videos could not be scored:", report.broken, text)
    return text


def prepare_vbench(args: argparse.Namespace) -> list[str]:
    """Check all that was asked for; returns the dimensions.

    Raises:
        ValueError: one sentence that names the argument.
    """
    if not any(args.generated_videos.glob("*.mp4")):
        raise ValueError(f"generated_videos: {args.generated_videos} is no folder with mp4 files.")
    check_environment(args.environment, args.python)
    if args.full_info is not None:
        read_full_info(args.full_info)
    dimensions = choose_dimensions(args.dimension, DIMENSIONS)
    args.output = args.output or args.generated_videos.absolute().parent / "vbench"
    output_file("output", Path(f"{args.output}.json"))
    return dimensions


def run_vbench(args: argparse.Namespace, dimensions: Sequence[str]) -> str:
    """Score, write, and return what to say."""
    python = prepare_environment(args.environment, args.python)
    full_info = args.full_info or package_full_info(python)
    results = Path(f"{args.output}_results")
    report = score(
        python, args.generated_videos.absolute(), results, dimensions, args.device, full_info.absolute()
    )
    return _say(report, args.output)


def prepare_tables(args: argparse.Namespace) -> list[ModelRun]:
    """Check all that was asked for, before anything is measured.

    Raises:
        ValueError: one sentence that names the argument.
    """
    check_device(args.device)
    runs = find_model_runs(args.run_dir)
    if args.environment is not None:
        check_environment(args.environment, args.python)
    args.output = args.output or args.run_dir / "tables"
    output_file("output", Path(f"{args.output}.json"))
    return runs


def run_tables(args: argparse.Namespace, runs: Sequence[ModelRun]) -> str:
    """Measure what is not measured, write the tables, and return what to say."""
    for run in runs:
        measure_closeness(run, args.device, args.again)
        if args.environment is not None:
            kind = torch.device(args.device).type
            score_vbench(run, args.environment, args.python, kind, args.again)
    papers, commands = registered_models(), read_commands(args.run_dir)
    tables = [build_table(run, papers) for run in runs]
    paths = save_tables(tables, args.output, commands)
    return "\n".join([markdown_tables(tables, commands), "", *map(str, paths)])


def prepare_plot(args: argparse.Namespace) -> list[Album]:
    """Check all that was asked for; returns what there is to draw.

    Raises:
        ValueError: one sentence that names the argument.
    """
    albums = find_albums(args.run_dir, args.prompt)
    args.output = writable_folder("output", args.output or args.run_dir / "pictures")
    return albums


def run_plot(args: argparse.Namespace, albums: Sequence[Album]) -> str:
    """Draw, and return what to say."""
    drawn = [line for album in albums for line in draw_album(album, args.output)]
    return "\n".join(drawn)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, measure; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args(arguments)
    if args.command == "flops":
        return run_checked(registered_models, flops)
    if args.command == "tables":
        return run_checked(lambda: prepare_tables(args), lambda runs: run_tables(args, runs))
    if args.command == "plot":
        return run_checked(lambda: prepare_plot(args), lambda albums: run_plot(args, albums))
    if args.command == "vbench":
        return run_checked(lambda: prepare_vbench(args), lambda dimensions: run_vbench(args, dimensions))
    return run_checked(lambda: prepare_physics_iq(args), lambda found: run_physics_iq(args, *found))


if __name__ == "__main__":
    sys.exit(main())
