"""What a visitor asks for, as words of the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..adapter import Adapter
from ..benchmark.samples import split_method
from ..cli import MODELS, Job, find_model, prepare_video
from ..methods import PRESETS
from ..options import DEFAULTS
from ..registry import check_number
from ..reuse import NoReuse

#: Prompts in the words that the small checkpoints know.
EXAMPLES = (
    "a red circle moves right over a dark background",
    "a yellow triangle bounces over a grey background",
    "a blue square moves up over a light background",
    "a green ring grows and shrinks over a dark background",
    "an orange circle bounces over a light background",
)

#: Options of targets, with the number that the page suggests.
TARGETS = {"target_speedup": 3, "target_psnr": 35}

#: Names of methods by their value, which is that of ``--methods``, or the option of a target.
METHODS = {
    "flowcache": "FlowCache",
    **{f"flowcache:{preset}": f"FlowCache, {preset}" for preset in PRESETS},
    "target_speedup": "FlowCache, by speed-up",
    "target_psnr": "FlowCache, by PSNR",
    "teacache": "TeaCache",
    "causal": "causal: every step computed",
    "vanilla": "vanilla: every step computed",
}

#: Words of the page for options that it lacks, as they stand in errors.
_WORDS = {
    "target_speedup: ": "speed-up: ",
    "target_psnr: ": "PSNR: ",
    "video_path: ": "video: ",
    "fewer than overlap_history ": "fewer than needed ",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video of one method.

    Args:
        model: name in ``MODELS``.
        method: one of ``METHODS``.
        target: value of a target.
        num_frames: one of the model's ``lengths``; None: its default.
        budget: chunks' worth of tokens that the KV cache keeps; None: all.
        given: image or video that the video starts with.
        checkpoints: ``auto`` or ``small``.
        folder: where the files go.
    """

    model: str
    prompt: str
    method: str = "flowcache:fast"
    target: float | None = None
    num_frames: int | None = None
    seed: int | None = None
    budget: int | None = None
    given: Path | None = None
    checkpoints: str = "auto"
    folder: Path = Path("outputs/demo")

    @property
    def label(self) -> str:
        """The method in a few words."""
        if self.method in TARGETS:
            unit = "x" if self.method == "target_speedup" else " dB"
            return f"FlowCache, target {self.target:g}{unit}"
        return METHODS[self.method]

    @property
    def adapter(self) -> type[Adapter]:
        _check_choice("model", self.model, list(MODELS))
        return find_model(self.model)

    def words(self) -> list[str]:
        """Options as a visitor would type them; raises ValueError for an unknown choice.

        What has no effect on a model or a method is left out there, as settings of a script are.
        """
        lengths, model = self.adapter.lengths, self.adapter
        _check_choice("method", self.method, list(METHODS))
        scripted = [DEFAULTS, f"--weights={self.checkpoints}"]
        if self.num_frames is not None:
            _check_choice("length", self.num_frames, list(lengths))
            scripted += lengths[self.num_frames].split()
        if self.budget is not None:
            scripted += ["--compress=true", f"--budget={self.budget}"]
        typed = [f"--prompt={self.prompt}", f"--outdir={self.folder.parent}", f"--expname={self.folder.name}"]
        if self.method in TARGETS:
            if self.target is None:
                raise ValueError(f"{self.method}: expected a number, got none; give one.")
            typed.append(f"--{self.method}={self.target}")
        else:
            method, preset = split_method(self.method)
            _check_choice("method", method, model.traits.methods)
            typed.append(f"--method={method}")
            scripted += [f"--preset={preset}"] if preset else []
        check_number("seed", self.seed, 0, 2**63 - 1)  # -1 would draw one, which no run can resume
        if self.seed is not None:
            typed.append(f"--seed={self.seed}")
        if self.given is not None:
            # Pillow names MPEG, too, but cannot read it
            images = Image.registered_extensions().keys() - {".mpg", ".mpeg"}
            typed.append(f"--{'image' if self.given.suffix.lower() in images else 'video_path'}={self.given}")
        return ["--resume=true", *typed, *scripted]

    def prepare(self, *, dry_run: bool = False) -> Job:
        """Check everything (ValueError or OSError with one sentence); a dry run writes nothing."""
        try:
            return prepare_video(self.adapter, [f"--dry_run={str(dry_run).lower()}", *self.words()])
        except SystemExit as error:  # of the parser, for text or numbers that no option takes
            raise ValueError("The request cannot be read; check its text and its numbers.") from error
        except ValueError as error:
            folder = f"{self.given.parent}/" if self.given else ""  # of uploads, which says nothing to visitors
            sentence = str(error).replace(folder, "")
            for option, word in _WORDS.items():
                sentence = sentence.replace(option, word)
            raise ValueError(sentence) from error


def list_methods(model: str, checkpoints: str) -> list[str]:
    """Methods to choose from for a model; presets and targets only where steps can be reused.

    ``checkpoints`` are those of ``Request``.
    """
    try:
        job = Request(model=model, prompt=EXAMPLES[0], checkpoints=checkpoints).prepare(dry_run=True)
    except (ValueError, OSError):  # weights cannot be resolved; the run reports it
        pass
    else:
        if isinstance(job.sampler.config.policy, NoReuse):
            return ["flowcache", "vanilla"]
    known = find_model(model).traits.methods
    return [name for name in METHODS if name in TARGETS or (name != "flowcache" and name.partition(":")[0] in known)]


def _check_choice(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}.")
