"""Published checkpoints: which configuration each is for, and which of its weights."""

from dataclasses import dataclass
from pathlib import Path

from .settings import CONFIGS

#: Keys of the weights in a checkpoint: of training, and their moving average.
WEIGHTS = {False: "generator", True: "generator_ema"}

NON_COMMERCIAL = "CC BY-NC-SA 4.0, not for commercial use"


@dataclass(frozen=True)
class Published:
    """A checkpoint on the Hub."""

    repository: str
    file: str
    config: Path
    use_ema: bool
    license: str

    @property
    def name(self) -> str:
        return f"{self.repository}/{self.file}"

    def check_folder(self, root: Path) -> None:
        """Refuse a folder of the repository that lacks the file."""
        if not (root / self.file).is_file():
            raise ValueError(f"{root} lacks {self.file}.")

    def is_at(self, path: Path) -> bool:
        """Whether a file has this checkpoint's name; where several share one, with its folder."""
        parts = Path(self.file).parts
        shared = parts[-1] in ("causal_forcing.pt", "causal_ode.pt", "causal_cd.pt", "ar_diffusion.pt")
        own = parts[-2:] if shared else parts[-1:]
        return path.parts[-len(own) :] == own


def _published(file: str, config: str, use_ema: bool) -> Published:
    repository, terms = "zhuhz22/Causal-Forcing", "Apache-2.0"
    if config.startswith("self_forcing"):
        repository, terms = "gdhe17/Self-Forcing", NON_COMMERCIAL
    return Published(repository, file, CONFIGS / f"{config}.yaml", use_ema, terms)


PUBLISHED = (
    _published("checkpoints/self_forcing_dmd.pt", "self_forcing_dmd", True),
    _published("checkpoints/self_forcing_sid.pt", "self_forcing_sid", True),
    _published("chunkwise/causal_forcing.pt", "causal_forcing_dmd_chunkwise", False),
    _published("framewise/causal_forcing.pt", "causal_forcing_dmd_framewise", True),
    _published("causal-forcing++/framewise-2step.pt", "causal_forcing_dmd_framewise_2step", True),
    _published("causal-forcing++/framewise-1step.pt", "causal_forcing_dmd_framewise_1step", True),
    *(
        _published(f"{kind}/{stage}.pt", f"{config}_{kind}", False)
        for kind in ("chunkwise", "framewise")
        for stage, config in (
            ("ar_diffusion", "ar_diffusion_tf"),
            ("causal_ode", "causal_ode"),
            ("causal_cd", "causal_cd"),
        )
    ),
)
#: Of ``auto`` on CUDA, with a licence that allows commercial use: for text, and for videos that start with an image.
DEFAULT, DEFAULT_IMAGE = PUBLISHED[2], PUBLISHED[3]


def find_published(path: Path) -> Published | None:
    """The published checkpoint that a path names, on the Hub or as a file; ValueError for one without its loop."""
    if path.name == "longvideo.pt":
        reason = "which needs the rolling-window loop, where chunks at several times see later ones"
        raise ValueError(f"transformer: expected a checkpoint made chunk after chunk, got {path}, {reason}.")
    named = next((each for each in PUBLISHED if each.name == path.as_posix()), None)
    return named or next((each for each in PUBLISHED if each.is_at(path)), None)
