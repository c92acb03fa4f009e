"""Hostile command lines and damaged files, drawn by number, and how the programs end.

``FUZZ_COUNT=10000 FUZZ_SEED=1 pytest tests/test_fuzz.py`` tries more than the usual few; the number of an input
stands in the name of its test. An input depends on the seed, its number and the code.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import traceback
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from reference import ROOT
from synthetic_run import make_run

from flowcache import cli
from flowcache.denoise import Denoiser
from flowcache.video import VideoWriter

COUNT, SEED = int(os.environ.get("FUZZ_COUNT", "80")), os.environ.get("FUZZ_SEED", "0")
#: Seconds and additional bytes that an input may take.
SECONDS, MEMORY = 60, 3 * 2**30
#: Numbers that may be larger than a million.
UNBOUNDED = {"seed", "end", "distributed_timeout_minutes"}

_NUMBERS = """
    0 1 2 3 5 8 16 17 33 97 -1 -0.0 0.5 1.5 1e-5 1e3 2.0 +5 1_000 0x10 65536 1000000 1000000001 2147483648
    9223372036854775808 1e-300 1e38 1e309 nan .nan inf -inf １２ 1,5 true null [] {} [1 x
"""
NUMBERS = (*_NUMBERS.split(), "1" + "0" * 400, "", " ")
TEXTS = (
    *("a", "a red circle", "", " ", "\t", "中文提示", "émile", "\N{GRINNING FACE}", "a" * 300, "a" * 5000, "\udcff"),
    *("-", "a\nb", "a/b", "../x", ".hidden", "%s %d", "{x}", "\x1b[31m", "null", "\ufeffa", "a\u202eb", "~"),
    *("word " * 400, "<pad>", "\\", '"', "'"),
)
#: Paths without a file; ``bad`` holds places that cannot be read or written.
_PATHS = """
    missing missing.mp4 missing/deep/er.mp4 . ~ ~nosuch_user/a.mp4 /proc/nowhere/a.mp4 a.avi /dev/null/a .mp4 a.mp4/ -a
    a.part.mp4 http://127.0.0.1:9/a.mp4 %03d.png *.mp4 ../bad/fifo ../bad/loop ../bad/dangling ../bad/folder.mp4
    ../good/notes.txt ../good/notes.txt/a.mp4 ../good/empty ../good/image.png ../good/in.mp4 ../good/options.yaml
    ../good/prompts ../good/skyreels
"""
PATHS = (*_PATHS.split(), "", " ", "x" * 255, "é" * 130 + ".mp4", "y/" * 1000 + "a.mp4", "a\nb.mp4", "\udcff.mp4")
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 10**4, 10**7, 2**31, 2**40, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e38),
    *(math.nan, math.inf, -math.inf, "", " ", "x", "../x", "nan", "1", "中", "a" * 300, "\ud800", [], [[]], [1, 2]),
    *(["a"], [None], {}, {"a": 1}, {"": {}}),
)
#: YAML that its reader turns into an exception of another kind, or into an unexpected value.
TAGS = (
    *("!!int ''", "!!bool x", "!!timestamp x", "!!python/object:os.system {}", "&a [*a]", "2026-01-01", "0o17"),
    *("1:30", "yes", "~", "!!binary x", "!!set {a}", "? a", "- - a", "*b", ".inf"),
)

_SKYREELS = "--model_id small --height 64 --width 64 --num_frames 17 --inference_steps 4 --ar_step 2"
_MAGI = "--num_steps 8 --num_frames 24"
_SAMPLES = " --gpus cpu --vbench_prompt_dir ../good/prompts --samples 1 --base_save_path out"
_VIDEOS = "--original_video ../good/original --generated_video ../good/generated --metrics psnr --output s"
_PHYSICS = "--generated_videos ../good/generated --reference_videos ../good/original --output scores"
#: Command of each program, and a usual command line.
PROGRAMS = {
    "skyreels": ("generate --model skyreels_v2", "--prompt a " + _SKYREELS),
    "magi": ("generate --model magi1", "--prompt a " + _MAGI),
    "skyreels_samples": ("sample --model skyreels_v2", _SKYREELS + _SAMPLES),
    "magi_samples": ("sample --model magi1", _MAGI + _SAMPLES),
    "metrics": ("metrics", _VIDEOS),
    "tables": ("benchmark tables", "--run_dir ../run --output tables --device cpu"),
    "plot": ("benchmark plot", "--run_dir ../run --output pictures"),
    "physics_iq": ("benchmark physics_iq", _PHYSICS),
}
#: Good files and folders, and the program and options that read them; a file in a folder is damaged in a copy.
FILES = (
    ("image.png", "skyreels", "--image"),
    ("image.png", "magi", "--mode i2v --image_path"),
    ("in.mp4", "skyreels", "--overlap_history 17 --video_path"),
    ("in.mp4", "magi", "--mode v2v --prefix_video_path"),
    ("in.mp4", "metrics", "--original_video ../good/in.mp4 --generated_video"),
    ("options.yaml", "magi", "--additional_config"),
    ("magi.json", "magi", "--config_file"),
    ("samples.yaml", "magi_samples", "--yaml_config"),
    ("prompts", "skyreels_samples", "--vbench_prompt_dir"),
    ("skyreels", "skyreels", "--model_id"),
    ("magi", "magi", "--model official --config_file"),
    ("../run", "tables", "--run_dir"),
    ("../run", "plot", "--run_dir"),
)


class Stopped(BaseException):
    """The program has come to the denoising loop."""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """Good and bad files; each input gets an empty working folder beside them."""
    root = tmp_path_factory.mktemp("sandbox")
    good, bad = root / "good", root / "bad"
    for folder in (good / "prompts", bad / "folder.mp4", root / "home"):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (40, 30), (200, 30, 30, 128)).save(good / "image.png")
    for name, count in (("in.mp4", 30), ("original/a.mp4", 5), ("generated/a.mp4", 5)):
        (good / name).parent.mkdir(exist_ok=True)
        frames = np.full((count, 64, 64, 3), 90, np.uint8)
        frames[:, 8:20, 8:40] = 220
        with VideoWriter(good / name, 24) as writer:
            writer.write(frames)
    (good / "prompts" / "scene.txt").write_text("a red circle\na circle\n")
    (good / "notes.txt").write_text("of the user\n")
    (good / "empty").touch()
    magi = ROOT / "FlowCache4MAGI-1"
    shutil.copy(magi / "yaml_config/single_run/config.yaml", good / "options.yaml")
    shutil.copy(magi / "yaml_config/sample/flowcache_vbench.yaml", good / "samples.yaml")
    shutil.copy(magi / "config/single_run/4.5B_distill.json", good / "magi.json")
    shutil.copytree(ROOT / "assets" / "skyreels_v2_small", good / "skyreels")
    shutil.copytree(ROOT / "assets" / "magi1_small", good / "magi")
    make_run(root / "run" / "abacus")  # which ``tables`` adds scores to
    os.mkfifo(bad / "fifo")
    (bad / "loop").symlink_to(bad / "loop")
    (bad / "dangling").symlink_to(bad / "nowhere" / "a.mp4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        for variable, value in {"HOME": root / "home", "FLOWCACHE_CACHE": root / "home" / "cache"}.items():
            patch.setenv(variable, str(value))
        for name in PROGRAMS:
            read_options(name)  # imports here what each input needs
        yield root


@pytest.mark.parametrize("number", range(COUNT))
def test_hostile_inputs_show_no_fault(sandbox, number):
    """Each input has a process of its own, which may hang, run out of memory or die."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        fault = pool.apply_async(_try_input, (sandbox, number)).get(SECONDS)
    assert not fault, fault


def _try_input(root: Path, number: int) -> str | None:
    """Draw the command line or damaged file of a number, run it silently and in bounded memory; return its fault."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    logging.root.handlers.clear()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    rng = Random(f"{SEED} {number}")
    with TemporaryDirectory(dir=root) as folder, contextlib.chdir(folder):
        name, typed, damaged = (_draw_file if rng.random() < 0.4 else _draw_line)(rng, root)
        try:
            _run_and_judge(root, name, typed, damaged)
        except Exception:
            shown = f"{name} {' '.join(word[:80] for word in _words(typed))} {damaged}"
            return f"{traceback.format_exc()[-1500:]}\n{shown}".encode("ascii", "backslashreplace").decode()


def _draw_line(rng: Random, root: Path) -> tuple[str, dict, tuple]:
    name = rng.choice(["skyreels", "magi", "skyreels_samples", "magi_samples", *PROGRAMS])
    options, typed = read_options(name), _split(PROGRAMS[name][1])
    for hostile in (False, True):
        for option in rng.sample(list(options), min(len(options), rng.choice((1, 1, 2, 3)))):
            if not hostile or rng.random() < 0.7:
                typed[option] = _draw_words(rng, options[option], hostile)
    return name, typed, ()


def _draw_file(rng: Random, root: Path) -> tuple[str, dict, tuple]:
    source, name, options = rng.choice(FILES)
    good = Path(source).name
    copied = shutil.copytree if (root / "good" / source).is_dir() else shutil.copy
    copied(root / "good" / source, good)
    suffixes = (".json", ".jsonl", ".yaml", ".txt", ".safetensors", ".png", ".mp4")
    files = [path for path in [Path(good), *sorted(Path(good).rglob("*"))] if path.is_file()]
    damaged = rng.choice([path for path in files if path.suffix in suffixes])
    _damage_file(rng, damaged)
    word = "magi/config.json" if good == "magi" else good
    return name, _split(f"{PROGRAMS[name][1]} {options} {word}"), damaged.parts


def _damage_file(rng: Random, path: Path) -> None:
    """Damage a file as its suffix suggests."""
    content, kind = path.read_bytes(), rng.random()
    if path.suffix in (".json", ".jsonl", ".yaml") and kind < 0.7:
        text, yaml = content.decode(), path.suffix == ".yaml"
        values = re.finditer(r"(?<=: )\S+" if yaml else r"(?<=[:,\[\s])[^\s,\[\]{}:]+(?=[,\n\]}]|$)", text)
        old, new = rng.choice([*values]), rng.choice([*map(json.dumps, VALUES), *(TAGS + NUMBERS) * yaml])
        content = f"{text[: old.start()]}{new}{text[old.end() :]}".encode("utf-8", "surrogatepass")
    elif path.suffix in (".json", ".jsonl", ".yaml", ".txt") and kind < 0.9:
        utf_16 = content.decode(errors="replace").encode("utf-16")
        other = (b"\xef\xbb\xbf" + content, content + b"\xff\xfe", content.replace(b"\n", b"\r\n"), content * 2)
        content = rng.choice((b"", b"3", b"word", b"\0" * 64, b"[" * 100_000, b'{"a":' * 100_000, utf_16, *other))
    else:
        first = rng.randrange(max(1, len(content)))
        last = first + rng.choice((1, 4, 64, 1024))
        cut, doubled, left_out = content[:first], content[:last] + content[first:], content[:first] + content[last:]
        overwritten = content[:first] + rng.randbytes(last - first) + content[last:]
        no_header, no_content = rng.randbytes(3) + content[3:], rng.randbytes(min(len(content), 4096))
        content = rng.choice((cut, doubled, left_out, overwritten, no_header, no_content))
    path.write_bytes(content)


def _draw_words(rng: Random, action: argparse.Action, hostile: bool) -> list[str]:
    """Draw words for an option: by its type and choices, or hostile ones."""
    if action.nargs == 0:
        return []
    count = rng.choice((0, 1, 3)) if hostile and action.nargs in ("+", "*") else 1
    kind = action.type if isinstance(action.type, type) else None
    if hostile:
        likely = {int: NUMBERS, float: NUMBERS, Path: PATHS}.get(kind, TEXTS + PATHS)
        return [rng.choice(rng.choice((likely, likely, NUMBERS, TEXTS, PATHS))) for _ in range(count)]
    default = ("a",) if action.default in (None, argparse.SUPPRESS) else (action.default,)
    usual = {int: (1, 2, 3, 8), float: (0.1, 0.5, 1.0)}.get(kind, default)
    return [str(rng.choice(list(action.choices or usual)))]


def _split(line: str) -> dict[str, list[str]]:
    """Words of each option of a command line by name."""
    return {words[0]: words[1:] for part in line.split("--") if (words := part.split())}


def _words(typed: dict[str, list[str]]) -> list[str]:
    return [word for name, words in typed.items() for word in (f"--{name}", *words)]


def _stamp(folder: Path) -> dict[Path, tuple[int, int]]:
    """Sizes and times of the files in a folder."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@cache
def read_options(name: str) -> dict[str, argparse.Action]:
    """Options of a program by name, from the parser itself."""
    parsers: list[argparse.ArgumentParser] = []
    with mock.patch.object(argparse.ArgumentParser, "print_help", lambda self, *_: parsers.append(self)):
        run_program(name, {"help": []})
    actions = [action for action in parsers[0]._actions if action.option_strings and action.dest != "help"]
    return {action.option_strings[0].lstrip("-"): action for action in actions}


def run_program(name: str, typed: dict[str, list[str]]) -> tuple[int | None, str]:
    """Run a program without other processes; return exit code (None in the denoising loop) and standard error."""
    code, output = None, io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(Denoiser, "run", side_effect=Stopped),
        mock.patch.object(subprocess, "Popen", side_effect=FileNotFoundError),
    ):
        try:
            code = cli.main([*PROGRAMS[name][0].split(), *_words(typed)])
        except SystemExit as ended:
            code = ended.code or 0
        except Stopped:
            pass
    return code, errors.buffer.getvalue().decode()


def _run_and_judge(root: Path, name: str, typed: dict[str, list[str]], damaged: tuple) -> None:
    """Run a program; bad input must end in one sentence that names it and leave no file behind."""
    options, before, good = read_options(name), _stamp(Path()), _stamp(root / "good")
    code, errors = run_program(name, typed)
    assert "Traceback (most" not in errors and code in (None, 0, 1, 2, 130, 143), f"ended with {code}: {errors}"
    sentences = [line for line in re.split(r"[\r\n]", errors) if line.startswith("error: ")]
    assert code not in (1, 2) or len(sentences) == 1, f"{len(sentences)} sentences: {errors}"
    if code == 2:
        words = [*typed, *(word for words in typed.values() for word in words), *options, *damaged]
        words = ["arguments", *(os.path.basename(word).lower() or word for word in words)]
        assert any(word and word in sentences[0].lower() for word in words), f"names no argument: {sentences[0]}"
    for option, words in typed.items() if code in (None, 0) else ():
        for word in words if option in options and options[option].type in (int, float) else ():
            assert not _is_nonsense(option, word), f"--{option} {word} was accepted"
    new = sorted(_stamp(Path()).keys() - before)
    assert _stamp(root / "good") == good, "files of the user changed"
    assert code != 2 or not new, f"a refusal left {new} behind"
    chosen = {Path(word).name for words in typed.values() for word in words} - {""}
    unasked = [path.name for path in new if not any(word in path.name for word in chosen)]
    half = [name for name in unasked if name.startswith(".") or name.endswith(".part.mp4")]
    assert code != 0 or not half, f"half-written: {half}"


def _is_nonsense(name: str, word: str) -> bool:
    with contextlib.suppress(ValueError):
        value = float(word.removeprefix("."))
        return not math.isfinite(value) or (abs(value) > 10**6 and name not in UNBOUNDED)
    return False
