"""Measure against published figures and benchmarks.

    python -m flowcache.benchmark flops
    python -m flowcache.benchmark physics_iq --generated_videos G --reference_videos R
    python -m flowcache.benchmark vbench --generated_videos G --environment ENV
    python -m flowcache.benchmark tables RUN_DIR
    python -m flowcache.benchmark plot RUN_DIR
    python -m flowcache.benchmark scaling

``flops`` prints the paper's PFLOPs beside ours; ``physics_iq`` and ``vbench`` score videos; ``tables`` puts a
run's results beside the paper's figures; ``plot`` draws its traces and plays its videos side by side; ``scaling``
predicts what several GPUs gain on one video.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from ..cli import MODELS, find_model
from ..command_line import Parser, check_device, output_stem, writable_folder
from ..environment import require
from ..parallel.efficiency import Hardware
from ..registry import check_number
from ..running import run_checked
from .paper_flops import NOTE, PaperFlops
from .physics_iq import PARTS, find_views
from .pictures import find_albums
from .prompts import DIMENSIONS, choose_dimensions, read_full_info
from .runs import find_model_runs, read_commands
from .samples import SamplesFailed, save_report
from .scaling import METHODS, list_videos, predict_all
from .tables import build_table, format_tables, save_tables
from .vbench import check_environment, score


def build_parser() -> ArgumentParser:
    parser = Parser(__doc__, prog="flowcache benchmark")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("flops", description="Print the paper's PFLOPs beside ours.")
    add = commands.add_parser("physics_iq", description="Score videos by Physics-IQ.").add_argument
    add("--generated_videos", type=Path, required=True, help="folder; names begin with the first take's id")
    add("--reference_videos", type=Path, required=True, help="folder of both takes, at the same rate")
    part = "seconds that count; last if the video begins with given frames (default: first)"
    add("--part", choices=PARTS, default=PARTS[0], help=part)
    add("--output", type=Path, help="CSV and JSON, without suffix (default: GENERATED_VIDEOS/physics_iq)")

    python = "Python to make the environment with (default: this one)"
    vbench = "Python environment with vbench, made if need be"
    add = commands.add_parser("vbench", description="Score videos by VBench.").add_argument
    add("--generated_videos", type=Path, required=True, help="folder of PROMPT-INDEX.mp4 and nothing else")
    add("--environment", type=Path, required=True, help=vbench)
    add("--python", default=sys.executable, help=python)
    add("--dimension", default="all", help="dimensions, separated by commas (default: all)")
    add("--full_info", type=Path, help="prompts in VBench's format (default: those of the package)")
    add("--device", default="cuda", choices=["cuda", "cpu"], help="device to score on (default: cuda)")
    add("--output", type=Path, help="CSV and JSON, without suffix (default: vbench, beside the folder)")

    add = commands.add_parser("tables", description="Make the paper's tables of a run.").add_argument
    add("run_dir", type=Path, help="folder of scripts/reproduce_tables.sh, or sample_video.py --methods")
    add("--output", type=Path, help="Markdown, CSV and JSON, without suffix (default: RUN_DIR/tables)")
    add("--again", action="store_true", help="measure again what is measured (default: only the rest)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="device to measure on (default: cuda if there is one, else cpu)")
    add("--environment", type=Path, help=f"{vbench} (default: no VBench)")
    add("--python", default=sys.executable, help=python)

    add = commands.add_parser("plot", description="Draw the pictures of a folder with traces.").add_argument
    add("run_dir", type=Path, help="folder with *.trace.json, at any depth")
    add("--output", type=Path, help="folder of the pictures (default: RUN_DIR/pictures)")
    add("--prompt", help="prompt to compare methods by (default: the first, or the one with most traces)")

    add = commands.add_parser(
        "scaling", description="Predict the efficiency of one video on several GPUs."
    ).add_argument
    add("--model", nargs="+", default=list(MODELS), choices=MODELS, help="models (default: all)")
    add("--only", default="", help="shipped configurations whose name contains this text (default: all)")
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="methods (default: all)")
    add("--gpus", nargs="+", type=int, default=[2, 4, 6, 8, 16, 32, 64], help="numbers of GPUs (default: 2 to 64)")
    add("--cfg_size", default="auto", choices=["auto", "1", "2"], help="groups of guidance branches (default: auto)")
    for field in fields(Hardware):
        text = f"{field.metadata['help']} (default: {field.default:g})"
        add(f"--{field.name}", type=float, default=field.default, help=text)
    add("--output", type=Path, help="CSV and JSON, without suffix (default: only printed)")
    return parser


#: What a command does once its arguments are checked; returns what to print.
Run = Callable[[], str]


def load_papers() -> list[PaperFlops]:
    """The paper's tables of all models that have one, by name."""
    try:
        modules = [import_module(name) for model in MODELS if find_spec(name := f"{model}.paper_flops")]
    except ImportError as error:
        raise ValueError(f"{error}; install this project again: pip install -e .") from error
    return sorted((module.paper_flops() for module in modules), key=lambda paper: paper.model)


def prepare_flops(args: Namespace) -> Run:
    papers = load_papers()
    return lambda: "\n\n".join([*(paper.markdown() for paper in papers), NOTE])


def prepare_physics_iq(args: Namespace) -> Run:
    require("cv2", "Physics-IQ", "metrics")
    report = find_views(args.generated_videos, args.reference_videos)
    report.check()
    output = output_stem("output", args.output or args.generated_videos / "physics_iq")

    def run() -> str:
        report.measure(args.part)
        if not report.measured:
            raise SamplesFailed("no video could be scored:", report.broken)
        return save_report(report, output)

    return run


def prepare_vbench(args: Namespace) -> Run:
    if not any(args.generated_videos.glob("*.mp4")):
        raise ValueError(f"generated_videos: {args.generated_videos} is not a folder with mp4 files.")
    check_environment(args.environment, args.python)
    if args.full_info is not None:
        read_full_info(args.full_info)
    dimensions = choose_dimensions(args.dimension, DIMENSIONS)
    output = output_stem("output", args.output or args.generated_videos.absolute().parent / "vbench")

    environment, results = (args.environment, args.python), Path(f"{output}_results")
    what = (environment, args.generated_videos, results, dimensions, args.device, args.full_info)
    return lambda: save_report(score(*what), output)


def prepare_tables(args: Namespace) -> Run:
    device, runs = check_device(args.device), find_model_runs(args.run_dir)
    if args.environment is not None:
        check_environment(args.environment, args.python)
    output = output_stem("output", args.output or args.run_dir / "tables")

    def run() -> str:
        for model in runs:
            model.measure(args.device, args.again)
            if args.environment is not None:
                model.score((args.environment, args.python), device.type, args.again)
        papers, commands = load_papers(), read_commands(args.run_dir)
        tables = [build_table(model, papers) for model in runs]
        paths = save_tables(tables, output, commands)
        return "\n".join([format_tables(tables, commands), "", *map(str, paths)])

    return run


def prepare_plot(args: Namespace) -> Run:
    albums = find_albums(args.run_dir, args.prompt)
    output = writable_folder("output", args.output or args.run_dir / "pictures")
    return lambda: "\n".join(line for album in albums for line in album.draw(output))


def prepare_scaling(args: Namespace) -> Run:
    for count in args.gpus:
        check_number("gpus", count, 1, 10**6)
    hardware = Hardware(**{field.name: getattr(args, field.name) for field in fields(Hardware)})
    videos = list_videos(map(find_model, args.model), args.only)
    if not videos:
        raise ValueError(f"only: expected a part of a configuration's name, got {args.only!r}; leave it out for all.")
    output = args.output and output_stem("output", args.output)
    cfg_size = args.cfg_size if args.cfg_size == "auto" else int(args.cfg_size)

    def run() -> str:
        report = predict_all(videos, args.gpus, hardware, cfg_size, args.methods)
        return "\n".join([report.text(), *map(str, report.save(output) if output else ())])

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    prepare: Callable[[Namespace], Run] = globals()[f"prepare_{args.command}"]
    return run_checked(lambda: prepare(args), lambda run: run())


if __name__ == "__main__":
    sys.exit(main())
