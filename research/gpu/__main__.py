"""Check on a CUDA device everything that differs there, and measure models of true size; offline.

    bash scripts/check_gpu.sh
    bash scripts/check_gpu.sh --only layers steps --minutes 10
    bash scripts/check_gpu.sh --device cpu --reduced --outdir outputs/gpu_reduced

Writes OUTDIR/gpu.md and OUTDIR/gpu.json; by default docs/gpu.md and outputs/gpu/gpu.json. Each section runs in a
process of its own. The exit code is 1 if a check failed; a check that cannot run is skipped and says why. True sizes
have random weights, so nothing is downloaded.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowcache.command_line import Parser, check_device, writable_folder
from flowcache.environment import describe_environment, repository_commit
from flowcache.running import run_checked

from . import kernels, resume, speed, videos, weights
from .bench import Bench, Outcome, Section, run_section
from .report import summarise, write_report

ROOT = Path(__file__).resolve().parents[2]

SECTIONS = (
    Section("machine", "The machine", "Speeds that layers and copies are compared with.", speed.check_machine, 0.5),
    Section(
        "small",
        "Small checkpoints against the CPU",
        "The same videos on the device and on the CPU. In fp32 without TF32, where every step is computed, latents "
        f"differ by at most {videos.TOLERANCE:g} of their norm; in the types of a run on the device, frames have at "
        f"least {videos.LEAST_PSNR:g} dB to fp32 on the CPU ({videos.LEAST_CHANGED:g} dB where distances decide "
        "otherwise).",
        videos.check_devices,
        3,
    ),
    Section(
        "attention",
        "Attention",
        f"Our choice and each installed backend, bf16, against plain fp32: at most {kernels.TOLERANCE:g} of the norm, "
        f"{kernels.COARSE:g} for those that round to 8 bits. A backend that refuses a shape is skipped.",
        kernels.check_attention,
        1,
    ),
    Section(
        "fp8",
        "fp8 products",
        "Layers of quantised MAGI-1 checkpoints against the same fp8 numbers in fp32.",
        kernels.check_fp8,
        0.5,
    ),
    Section(
        "store",
        "Keys and values in host memory: the store",
        "Rows are read ahead on a stream of their own while others are written; all must be those of a store on the "
        "device.",
        kernels.check_store,
        1,
    ),
    Section(
        "kv_offload",
        "Keys and values in host memory: videos",
        "Videos of the small checkpoints with `--kv_offload`, bit for bit those without.",
        videos.check_stores,
        2,
    ),
    Section(
        "offload",
        "Idle components in host memory",
        "`--offload` on the small checkpoints: the same latents, and a lower peak.",
        videos.check_offload,
        1,
    ),
    Section(
        "quantised",
        "Quantised weights",
        "`--quantize` on the small checkpoints, `fast`, against the weights as they are.",
        weights.check_quantised,
        1,
    ),
    Section(
        "compiled",
        "Compiled blocks",
        "`--compile` on the small checkpoints, `fast`, against blocks that are not compiled.",
        weights.check_compiled,
        2.5,
    ),
    Section("resume", "Killed runs", "A run is killed and continues: the same file.", resume.checks, 2),
    Section(
        "layers",
        "Layers of true size",
        "Random weights, bf16, 97 frames of 540P (SkyReels-V2) or 96 of 720 x 720 (MAGI-1). The floor is the layer's "
        "FLOPs at the speed of a product of matrices of 8192.",
        speed.check_layers,
        2.5,
    ),
    Section(
        "steps",
        "Videos of true size",
        "Random weights, latents only: 97 frames of 540P in 50 steps (SkyReels-V2), 120 of 720 x 720 in 64 (MAGI-1), "
        "165 of 480P in 4 steps a chunk and 33 in 50 (Self-Forcing). The video of `vanilla` is projected from a few "
        "of its steps, as is what time cut off from the others. Launches, waits and copies are those of one full "
        "step, with `kv_offload` of the last step that computes. The peak must not exceed the estimate of `--dry_run` "
        "by more than 1 GiB.",
        speed.check_steps,
        7,
    ),
)


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:1 or, with --reduced, cpu (default: cuda)")
    add("--minutes", type=float, default=20, help="time of all checks together (default: 20)")
    add("--only", nargs="+", choices=[s.name for s in SECTIONS], help="sections to run (default: all)")
    add("--reduced", action="store_true", help="tiny sizes, which a CPU runs in a minute")
    add("--outdir", type=Path, help="folder of gpu.md and gpu.json (default: docs, and outputs/gpu)")
    return parser


def prepare(args: argparse.Namespace) -> tuple[Path, Path]:
    """Check the arguments; returns where to write page and record."""
    if not 0.1 <= args.minutes <= 600:
        raise ValueError(f"minutes: expected 0.1 to 600, got {args.minutes:g}.")
    if check_device(args.device).type == "cpu" and not (args.reduced and args.outdir):
        raise ValueError(
            "device: expected cuda, got cpu; add --reduced and an --outdir to try the checks without one."
        )
    page, record = args.outdir or ROOT / "docs", args.outdir or ROOT / "outputs" / "gpu"
    return tuple(writable_folder("outdir", folder) / name for folder, name in ((page, "gpu.md"), (record, "gpu.json")))


def run(args: argparse.Namespace, page: Path, record: Path) -> str:
    """Run the sections and write the page; raises ValueError with the checks that failed."""
    started, outcomes = time.time(), list[Outcome]()
    sections = [section for section in SECTIONS if args.only is None or section.name in args.only]
    try:
        for section, bench in share_time(args, sections):
            for outcome in run_section(section, bench):
                outcomes.append(outcome)
                sys.stderr.write(f"{outcome.result:8}{section.name}: {outcome.check} {outcome.note}\n")
    finally:
        # Only now may this process use the device: an exclusive one would have refused the sections'.
        write_report(page, record, describe(args, time.time() - started), sections, outcomes)
    if failed := [f"{each.section}: {each.check}" for each in outcomes if each.result == "fail"]:
        raise ValueError(f"{len(failed)} of {len(outcomes)} checks failed, see {page}: {'; '.join(failed)}")
    return f"{summarise(outcomes)} {page}"


def share_time(args: argparse.Namespace, sections: Sequence[Section]) -> Iterator[tuple[Section, Bench]]:
    """Give each section its share of the time that is left when it begins."""
    end = time.time() + 60 * args.minutes
    for place, section in enumerate(sections):
        now, shares = time.time(), sum(each.minutes for each in sections[place:])
        yield section, Bench(args.device, args.reduced, now + (end - now) * section.minutes / shares)


def describe(args: argparse.Namespace, seconds: float) -> dict[str, str]:
    environment = describe_environment(args.device)
    kind = (
        "reduced sizes, processor time: it shows that the checks run, not how fast" if args.reduced else "true sizes"
    )
    return {
        "device": environment.pop("hardware"),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"bash scripts/check_gpu.sh {shlex.join(sys.argv[1:])}".strip(),
        "minutes": f"{seconds / 60:.1f}, {kind}",
        "commit": repository_commit(),
        **{name: environment[name] for name in ("python", "torch", "diffusers")},
    }


if __name__ == "__main__":
    args = make_parser().parse_args()
    sys.exit(run_checked(lambda: prepare(args), lambda paths: run(args, *paths)))
