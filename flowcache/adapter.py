"""What a model contributes to the programs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from .config import FlowCacheConfig
from .methods import MethodOptions, ModelTraits
from .options import Given, OptionParser
from .output import VideoPart
from .state import State
from .trace import Trace
from .video import Frames, VideoInfo, resize_and_crop, to_float


@dataclass(frozen=True)
class Start:
    """What a video starts from.

    Attributes:
        prefix: first frames, ``[3, frames, height, width]`` in [-1, 1].
        last: frame to arrive at, ``[3, 1, height, width]``.
        before: video to write first.
        skip: generated frames not to write.
    """

    prefix: Tensor | None = None
    last: Tensor | None = None
    before: Path | None = None
    skip: int = 0


class Adapter(ABC):
    """A model and the settings of its videos, chosen and checked before any weight is read.

    All methods but ``load`` and ``stream`` raise ValueError, with a sentence that names the option.

    Attributes:
        title: name of the model in tables.
        package: folder of its outputs.
        inputs: options of the start of a video that the model has, with the original's names.
        lacks: options of the method that the model does not have.
        saving: options that need less memory, the least loss first.
        staged: components of the pipeline that are on the device only for their stages.
        on_host: components that never are.
        video: settings of the video, with ``seed`` and ``fps``.
        size: height and width in pixels.
        num_steps: denoising steps of a chunk.
        location: folder or Hub id of the weights.
        folders: local folders of weights, by the setting that names them.
        is_small: whether the weights are the small checkpoint of this project.
        words: of the settings, for the name of a video.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    traits: ClassVar[ModelTraits]
    inputs: ClassVar[Mapping[str, tuple[str, ...]]]
    lacks: ClassVar[frozenset[str]] = frozenset()
    saving: ClassVar[tuple[str, ...]]
    staged: frozenset[str] = frozenset()
    on_host: frozenset[str] = frozenset()
    video: Any
    size: tuple[int, int]
    num_steps: int
    location: str
    folders: Mapping[str, Path]
    default_prompt: str
    is_small: bool
    words: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def add_flags(cls, parser: OptionParser, program: str) -> None:
        """Add the model's own options; ``program`` is ``generate`` or ``sample``."""

    @classmethod
    def options_file(cls, program: str) -> Path | None:
        """YAML file whose options hold where nothing else is given."""

    @classmethod
    def settle(cls, given: Given) -> None:
        """Replace options of the original program by those that all models share."""

    @classmethod
    @abstractmethod
    def resolve(cls, given: Given, device: str, info: VideoInfo | None, seconds: float | None) -> Self:
        """Choose weights and settings; reads no weight and opens no connection.

        Args:
            info: size and rate of the image or video that the video starts with.
            seconds: length of the new part, for a benchmark that continues videos.
        """

    @abstractmethod
    def settings(self, with_folders: bool = True) -> dict[str, Any]:
        """Everything that decides about a video but method, prompt, seed and start, for JSON.

        Without ``with_folders``, local folders of weights are left out, as they may move.
        """

    @abstractmethod
    def describe(self) -> str:
        """Length, size and steps of the videos in words, for tables."""

    def unread(self, given: Given) -> dict[str, str]:
        """Why options of the model have no effect, by name."""
        return {}

    @abstractmethod
    def configure(self, options: MethodOptions) -> FlowCacheConfig:
        """Settings of the method on this model."""

    @abstractmethod
    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that the model cannot use."""

    def check(self, config: FlowCacheConfig, start: Start) -> None:
        """Refuse a method or a start that does not fit the video."""

    def check_history(self, path: Path) -> None:
        """Refuse a video that cannot be continued; a long one is not decoded."""

    def start(self, image: Frames | None, last: Frames | None, history: Path | None) -> Start:
        """Bring images ``[height, width, 3]``, or the end of a video, to the size and rate of the video."""
        if history is not None:
            return self.continue_from(history)
        sized = [None if f is None else resize_and_crop(f[None], *self.size) for f in (image, last)]
        return Start(*(None if frame is None else to_float(frame) for frame in sized))

    @abstractmethod
    def continue_from(self, history: Path) -> Start:
        """Read the end of a video at the size and rate of the new one."""

    @abstractmethod
    def load(self, device: str) -> Any:
        """Read the weights; returns a pipeline."""

    @abstractmethod
    def skeleton(self, device: str) -> Any:
        """Make the pipeline that ``load`` gives on a kind of device, on the meta device."""

    @abstractmethod
    def rehearse(self, pipeline: Any, start: Start, config: FlowCacheConfig, trace: Trace) -> Iterator[VideoPart]:
        """Run a skeleton's text encoder on the longest prompt, then ``stream``."""

    @abstractmethod
    def stream(
        self, pipeline: Any, prompt: str, start: Start, config: FlowCacheConfig, trace: Trace, state: State | None
    ) -> Iterator[VideoPart]:
        """Generate a video part by part; see the pipeline's ``stream``."""

    @abstractmethod
    def with_video(self, **changes: Any) -> Self:
        """A copy with other settings of the video."""

    @abstractmethod
    def pilot(self) -> tuple[Self, str]:
        """A copy for the short video of a search for settings, and the name of its profile."""
