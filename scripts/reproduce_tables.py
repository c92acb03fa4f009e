"""Make the paper's two tables: sample all methods in turn, measure, and write tables and pictures.

    bash scripts/reproduce_tables.sh --model small --prompts 5
    bash scripts/reproduce_tables.sh --model official --vbench_prompt_dir VBench \\
        --load sand-ai/MAGI-1/ckpt/magi/4.5B_distill

DEVICES names the GPUs, all by default; torchrun on many machines also works, and then only samples. The same
command continues an interrupted run. Other flags can be given to the sampling programs:
``--skyreels_flags "--num_frames 97"``.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from flowcache.benchmark.runs import COMMAND_FILE, read_commands
from flowcache.command_line import Parser, writable_folder
from flowcache.files import write_atomically
from flowcache.methods import INTERVAL_SCALE
from flowcache.registry import check_number
from flowcache.running import run_checked
from skyreels_v2.checkpoint import OFFICIAL_DEFAULT

ROOT = Path(__file__).resolve().parents[1]
TABLES_CONFIG = "FlowCache4MAGI-1/yaml_config/sample/flowcache_vbench_tables.yaml"

METHODS = [f"{method}:paper-{preset}" for method in ("teacache", "flowcache") for preset in ("slow", "fast")]
METHODS += [f"flowcache:{preset}" for preset in INTERVAL_SCALE]
#: Methods of each model, the one that ratios are to first.
MODELS = {"skyreels_v2": ["vanilla", "causal", *METHODS], "magi1": ["vanilla", *METHODS]}
FOLDERS = {"skyreels_v2": "FlowCache4SkyReels-V2", "magi1": "FlowCache4MAGI-1"}
#: The settings that fit the paper's vanilla rows, see ``python -m flowcache.benchmark flops``.
SETTINGS = {
    "skyreels_v2": "--num_frames 177 --base_num_frames 97 --overlap_history 17 --addnoise_condition 20 "
    "--inference_steps 50 --ar_step 5 --causal_block_size 5",
    "magi1": "--num_frames 240 --num_steps 64",
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    models = "weights; auto: official on CUDA, else small (default: auto)"
    add("--model", choices=["auto", "small", "official"], default="auto", help=models)
    add("--only", choices=list(MODELS), help="one model's table (default: both)")
    add("--prompts", type=int, default=5, help="number of prompts (default: 5)")
    add("--outdir", type=Path, help="folder for the results (default: outputs/tables_MODEL)")
    add("--vbench_prompt_dir", help="VBench's repository or package; needed for official weights")
    add("--dimension", default="all", help="dimensions of VBench, separated by commas (default: all)")
    add("--samples", type=int, default=1, help="videos of each prompt; VBench wants 5 (default: 1)")
    add("--model_id", help="SkyReels-V2, a folder or a Hub id (default: as --model says)")
    add("--load", help="MAGI-1, a folder or a Hub id (default: that of its configuration)")
    add("--environment", help="Python environment with vbench, made if need be (default: no VBench)")
    words = {"type": shlex.split, "default": []}
    add("--skyreels_flags", **words, help="more for FlowCache4SkyReels-V2/sample_video.py (default: none)")
    add("--magi_flags", **words, help="more for FlowCache4MAGI-1/sample_video.py (default: none)")
    return parser


def prepare(args: argparse.Namespace) -> tuple[Path, dict[str, list[str]]]:
    """Check what the programs do not check themselves; returns folder, and words by program."""
    check_number("prompts", args.prompts, 1, 10**6)
    outdir = writable_folder("outdir", args.outdir or Path("outputs") / f"tables_{args.model}")
    shared = ["--benchmark", "vbench", "--samples", str(args.samples), "--end", str(args.prompts)]
    shared += ["--dimension", args.dimension]
    shared += ["--vbench_prompt_dir", args.vbench_prompt_dir] if args.vbench_prompt_dir else []
    model_id = args.model_id or (OFFICIAL_DEFAULT if args.model == "official" else args.model)
    load = ["--load", args.load] if args.load else []
    flags = {
        "skyreels_v2": ["--model_id", model_id, *args.skyreels_flags],
        "magi1": ["--yaml_config", str(ROOT / TABLES_CONFIG), "--model", args.model, *load, *args.magi_flags],
    }
    programs = {}
    for name in [args.only] if args.only else MODELS:
        words = [*shared, *SETTINGS[name].split(), *flags[name]]
        words += ["--base_save_path", str(outdir / name), "--methods", *MODELS[name]]
        programs[name] = [str(ROOT / FOLDERS[name] / "sample_video.py"), *words]
    if "WORLD_SIZE" not in os.environ:
        vbench = ["--environment", args.environment] if args.environment else []
        programs["tables"] = ["-m", "flowcache.benchmark", "tables", str(outdir), *vbench]
        programs["plot"] = ["-m", "flowcache.benchmark", "plot", str(outdir)]
    return outdir, programs


def note_command(outdir: Path) -> None:
    """Add this command to those of the folder, before any video is made: a killed run has it, too."""
    launcher = "bash scripts/reproduce_tables.sh"
    if world := os.environ.get("WORLD_SIZE"):
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        launcher = f"torchrun --nnodes={int(world) // local} --nproc_per_node={local} scripts/reproduce_tables.py"
    commands = dict.fromkeys([*read_commands(outdir), f"{launcher} {shlex.join(sys.argv[1:])}".strip()])
    write_atomically(outdir / COMMAND_FILE, "".join(f"{line}\n" for line in commands).encode())


def run(outdir: Path, programs: dict[str, list[str]]) -> str:
    """Sample, measure, draw; ValueError if a program failed, which has said why. Returns a report."""
    if os.environ.get("RANK", "0") == "0":
        note_command(outdir)
    failed = []
    for name, command in programs.items():
        code = subprocess.run([sys.executable, *command]).returncode
        if code not in (0, 1):
            raise ValueError(f"{name} was not finished, for the reason above; finished videos are kept.")
        failed += [name] * code
    if failed:
        raise ValueError(f"{', '.join(failed)}: not finished, for the reasons above; the rest is kept.")
    again = "again, without sampling" if "tables" in programs else "when all machines are done"
    return f"{again}: python -m flowcache.benchmark tables {shlex.quote(str(outdir))}"


def main() -> int:
    args = build_parser().parse_args()
    return run_checked(lambda: prepare(args), lambda job: run(*job))


if __name__ == "__main__":
    sys.exit(main())
