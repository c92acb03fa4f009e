"""Make the paper's two tables: sample all methods in turns, measure, and write tables and pictures.

    bash scripts/reproduce_tables.sh --model small --prompts 5
    bash scripts/reproduce_tables.sh --model official --vbench_prompt_dir VBench \\
        --load sand-ai/MAGI-1/ckpt/magi/4.5B_distill

DEVICES names the GPUs, all by default; torchrun on many machines does as well, and then only samples. A run
that was interrupted goes on where it was. What is no flag here can be given to the sampling programs:
``--skyreels_flags "--num_frames 97"``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowcache.benchmark.runs import COMMAND_FILE, read_commands
from flowcache.command_line import Parser, writable_folder
from flowcache.config import PACES
from flowcache.files import write_atomically
from flowcache.limits import check_number
from flowcache.running import run_checked
from skyreels_v2.checkpoint import OFFICIAL_DEFAULT

ROOT = Path(__file__).resolve().parents[1]

METHODS = tuple(f"{method}:paper-{pace}" for method in ("teacache", "flowcache") for pace in ("slow", "fast"))
METHODS += tuple(f"flowcache:{preset}" for preset in PACES)
#: Ways of each model, the one that ratios are to first.
WAYS = {"skyreels_v2": ("vanilla", "causal", *METHODS), "magi1": ("vanilla", *METHODS)}

#: The settings that fit the paper's vanilla rows, see ``python -m flowcache.benchmark flops``.
SETTINGS = {
    "skyreels_v2": "--num_frames 177 --base_num_frames 97 --overlap_history 17 --addnoise_condition 20 "
    "--inference_steps 50 --ar_step 5 --causal_block_size 5",
    "magi1": "--num_frames 240 --num_steps 64",
}
DEFAULT_PROMPTS = 5


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", choices=["auto", "small", "official"], default="auto", help="auto: official on CUDA")
    add("--only", choices=list(WAYS), help="one model's table")
    add("--prompts", type=int, default=DEFAULT_PROMPTS, help=f"(default: {DEFAULT_PROMPTS})")
    add("--outdir", type=Path, help="(default: outputs/tables_MODEL)")
    add("--vbench_prompt_dir", help="VBench's repository or package; needed for official weights")
    add("--dimension", default="all", help="of VBench; several with commas between them (default: all)")
    add("--samples", type=int, default=1, help="videos of a prompt; VBench wants 5 (default: 1)")
    add("--model_id", help="of SkyReels-V2, a folder or a Hub id (default: as --model says)")
    add("--load", help="of MAGI-1, a folder or a Hub id (default: what its configuration names)")
    add("--environment", help="Python environment with vbench, made if need be (default: VBench is left out)")
    add("--skyreels_flags", default="", help="more for FlowCache4SkyReels-V2/sample_video.py")
    add("--magi_flags", default="", help="more for FlowCache4MAGI-1/sample_video.py")
    return parser


def sampling_commands(args: argparse.Namespace, outdir: Path) -> dict[str, list[str]]:
    """The program that samples each model in all its ways, and its arguments."""
    shared = ["--benchmark", "vbench", "--samples", str(args.samples), "--end", str(args.prompts)]
    shared += ["--dimension", args.dimension]
    if args.vbench_prompt_dir:
        shared += ["--vbench_prompt_dir", args.vbench_prompt_dir]
    model_id = args.model_id or (OFFICIAL_DEFAULT if args.model == "official" else args.model)
    skyreels = ["--model_id", model_id]
    config = ROOT / "FlowCache4MAGI-1" / "yaml_config" / "sample" / "flowcache_vbench_tables.yaml"
    magi = ["--yaml_config", str(config), "--model", args.model]
    magi += ["--load", args.load] if args.load else []
    programs = {
        "skyreels_v2": ("FlowCache4SkyReels-V2", [*skyreels, *shlex.split(args.skyreels_flags)]),
        "magi1": ("FlowCache4MAGI-1", [*magi, *shlex.split(args.magi_flags)]),
    }
    return {
        name: [
            str(ROOT / folder / "sample_video.py"),
            *shared,
            *shlex.split(SETTINGS[name]),
            *flags,
            *("--base_save_path", str(outdir / name), "--ways", *WAYS[name]),
        ]
        for name, (folder, flags) in programs.items()
        if args.only in (None, name)
    }


def prepare(args: argparse.Namespace) -> Path:
    """Check what the programs do not check themselves; returns the folder.

    Raises:
        ValueError: one sentence that names the argument.
    """
    check_number("prompts", args.prompts, 1, 10**6)
    for name in ("skyreels_flags", "magi_flags"):
        try:
            shlex.split(getattr(args, name))
        except ValueError as error:
            raise ValueError(f"{name} cannot be split into words: {error}.") from error
    return writable_folder("outdir", args.outdir or Path("outputs") / f"tables_{args.model}")


def run(args: argparse.Namespace, outdir: Path, environment: Mapping[str, str]) -> str:
    """Sample, measure, draw; returns what to say.

    Raises:
        ValueError: a program refused or failed; it has said why. Tables and pictures are made without what
            could not be sampled.
    """
    if environment.get("RANK", "0") == "0":
        # first of all, so that videos of a run that is killed have the command that made them
        _note_command(outdir, environment)
    failed = [name for name, command in sampling_commands(args, outdir).items() if not _call(name, command)]
    reports = f"python -m flowcache.benchmark tables {shlex.quote(str(outdir))}"
    if "WORLD_SIZE" in environment and not failed:
        return f"when all machines are done: {reports}"
    if "WORLD_SIZE" not in environment:
        vbench = ["--environment", args.environment] if args.environment else []
        for name, words in (("tables", vbench), ("plot", [])):
            failed += [] if _call(name, ["-m", "flowcache.benchmark", name, str(outdir), *words]) else [name]
    if failed:
        raise ValueError(
            f"{', '.join(failed)}: not finished, for the reasons above; finished videos are kept."
        )
    return f"again, without sampling: {reports}"


def _note_command(outdir: Path, environment: Mapping[str, str]) -> None:
    """Keep this command beside those that videos in the folder came from before."""
    told = shlex.join([*_started_as(environment), *sys.argv[1:]])
    commands = dict.fromkeys([*read_commands(outdir), told])
    write_atomically(outdir / COMMAND_FILE, "".join(f"{command}\n" for command in commands).encode())


def _started_as(environment: Mapping[str, str]) -> list[str]:
    """The command without its flags."""
    if "WORLD_SIZE" not in environment:
        return ["bash", "scripts/reproduce_tables.sh"]
    world = int(environment["WORLD_SIZE"])
    local = int(environment.get("LOCAL_WORLD_SIZE", world))
    return [
        "torchrun",
        f"--nnodes={world // local}",
        f"--nproc_per_node={local}",
        "scripts/reproduce_tables.py",
    ]


def _call(name: str, command: Sequence[str]) -> bool:
    """Run a Python program of this project; says whether it did all that it was asked for.

    Raises:
        ValueError: it refused, or was interrupted.
    """
    code = subprocess.run([sys.executable, *command]).returncode
    if code not in (0, 1):
        raise ValueError(f"{name} was not finished, for the reason above; what is there is kept.")
    return code == 0


def main() -> int:
    """Parse, check, run; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args()
    return run_checked(lambda: prepare(args), lambda outdir: run(args, outdir, os.environ))


if __name__ == "__main__":
    sys.exit(main())
