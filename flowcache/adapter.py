"""What a model contributes to the programs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from .config import FlowCacheConfig
from .flops import TransformerFlops
from .loading import LoadOptions
from .lora import Translate, parse_lora, read_lora
from .methods import MethodOptions, ModelTraits
from .options import Given, OptionParser
from .parallel import Group, SequenceShares
from .parallel.layout import SINGLE, check_count, choose_cfg_size
from .parallel.sharding import check_sharding
from .parallel.world import Connection
from .pipeline import StepCallback
from .prompt_schedule import PromptSchedule
from .state import State, VideoPart
from .trace import Trace
from .video import Frames, VideoInfo, resize_and_crop, to_float


@dataclass(frozen=True)
class Start:
    """What a video starts from; frames are ``[3, frames, height, width]`` in [-1, 1]."""

    prefix: Tensor | None = None
    last: Tensor | None = None  # one frame to arrive at
    before: Path | None = None  # video to write first
    skip: int = 0  # generated frames not to write


class Adapter(ABC):
    """A model and the settings of its videos, chosen and checked before any weight is read.

    All methods but ``load`` and ``stream`` raise ValueError, with a sentence that names the option.
    """

    title: ClassVar[str]  # name of the model in tables
    package: ClassVar[str]  # folder of its outputs
    traits: ClassVar[ModelTraits]
    # Options of the start of a video that the model has, with the original's names.
    inputs: ClassVar[Mapping[str, tuple[str, ...]]]
    size_options: ClassVar[tuple[str, str]] = ("height", "width")  # options of the size of the frames
    lacks: ClassVar[frozenset[str]] = frozenset()  # options of the method that the model does not have
    # YAML files whose options hold where nothing else is given, by program.
    option_files: ClassVar[Mapping[str, Path]] = {}
    clean_prompt: ClassVar[Callable[[str], str]]  # gives the part of a prompt that is tokenized
    translate_lora: ClassVar[Translate] = dict  # to the names of the transformer's layers
    transformer_flops: ClassVar[Callable[[Any], TransformerFlops]]  # of a transformer's configuration
    saving: ClassVar[tuple[str, ...]]  # options that need less memory, the least loss first
    shipped: ClassVar[Mapping[str, str]] = {}  # options of the official models as the scripts run them, by name
    lengths: ClassVar[Mapping[int, str]]  # options of videos to choose from, by their number of frames
    staged: frozenset[str] = frozenset()  # components of the pipeline that are on the device for their stages alone
    on_host: frozenset[str] = frozenset()  # components that never are
    loading: LoadOptions
    video: Any  # settings of the video, with ``num_frames``, ``last_chunk_frame``, ``seed``, ``noise`` and ``fps``
    size: tuple[int, int]  # height and width in pixels
    num_steps: int  # denoising steps of a chunk
    shape: str  # words for what else determines the speed, for tables
    profile_word: str  # the same for the name of a profile
    location: str  # folder or Hub id of the weights
    folders: Mapping[str, Path]  # local folders of weights, by the setting that names them
    default_prompt: str
    is_small: bool  # whether the weights are the small checkpoint of this project
    words: tuple[str, ...] = ()  # words of the settings, for the name of a video
    from_images: bool = False  # whether the videos of a list start with images
    connection: Connection = Connection()  # of several processes
    cfg_size: int | str = 1  # parts of guidance that processes may run apart, see ``Layout.plan``
    is_guided: bool = False  # whether there are such parts

    @classmethod
    @abstractmethod
    def add_flags(cls, parser: OptionParser, program: str) -> None:
        """Add the model's own options; ``program`` is ``generate`` or ``sample``."""

    @classmethod
    def translate(cls, given: Given) -> None:
        """Replace options of the original program by those that all models share."""

    @classmethod
    @abstractmethod
    def resolve(cls, given: Given, device: str, info: VideoInfo | None, seconds: float | None) -> Self:
        """Choose weights and settings, and refuse options without effect; reads no weight, opens no connection.

        ``info`` is that of the image or video that the video starts with; ``seconds`` the length of the new part, for
        a benchmark that continues videos.
        """

    def fit_frames(self, count: int, has_image: bool) -> int:
        """The nearest number of frames that a video from text, or from text and an image, can have."""
        return count

    @abstractmethod
    def settings(self, with_folders: bool = True) -> dict[str, Any]:
        """Everything that decides about a video but method, prompt, seed and start, for JSON.

        Without ``with_folders``, local folders of weights are left out, as they may move.
        """

    def describe(self) -> str:
        """Length, size and steps of the videos in words, for tables."""
        height, width = self.size
        return f"{self.video.num_frames} frames of {width} x {height}, {self.num_steps} steps, {self.shape}"

    @abstractmethod
    def configure(self, options: MethodOptions) -> FlowCacheConfig:
        """Settings of the method on this model."""

    def check(self, config: FlowCacheConfig, start: Start) -> None:
        """Refuse a method or a start that does not fit the video."""

    @property
    def heads(self) -> tuple[int, int]:
        """Query and key-value heads of the transformer, by default as many of each."""
        return (self.skeleton("cpu").transformer.config.num_attention_heads,) * 2

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame: of 16 x 16 pixels each."""
        height, width = self.size
        return height // 16 * (width // 16)

    def check_processes(self, count: int) -> None:
        """Refuse a number of processes for which there are too few heads or tokens."""
        if self.loading.shard_weights:
            check_sharding(count)
        if count > 1:
            parts, kv_heads = choose_cfg_size(count, self.is_guided, self.cfg_size), self.heads[1]
            check_count(count, parts, kv_heads, self.is_guided)
            SequenceShares(Group(0, count // parts), self.frame_tokens, kv_heads)

    def choose_processes(self, count: int) -> int:
        """How many of ``count`` processes of a benchmark make each video together."""
        return 1

    def weight_bytes(self, device: str) -> int:
        """Bytes of the weights that every process holds: those of all but the text encoder."""
        pipeline = self.skeleton(device)
        return sum(tensor.nbytes for part in (pipeline.transformer, pipeline.vae) for tensor in part.parameters())

    def check_lora(self, device: str) -> None:
        """Refuse LoRA weights that do not fit the transformer."""
        loras = self.loading.lora
        transformer = self.skeleton(device).transformer if loras else None
        for path, _ in map(parse_lora, loras):
            read_lora(path, transformer, self.translate_lora)

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
    def load(self, device: str, group: Group = SINGLE.world) -> Any:
        """Read the weights; returns a pipeline. Of several processes the first alone has the text encoder."""

    @abstractmethod
    def skeleton(self, device: str) -> Any:
        """Make the pipeline that ``load`` gives on a kind of device, on the meta device."""

    @abstractmethod
    def rehearse(self, pipeline: Any, start: Start, config: FlowCacheConfig, trace: Trace) -> Iterator[VideoPart]:
        """Run a skeleton's text encoder on the longest prompt, then ``stream``."""

    def rehearse_decoding(self, pipeline: Any, group: Group) -> Iterator[tuple[int, int]]:
        """Decode with a skeleton, as a process of a group, one of each kind of part that a video is decoded in.

        Yields after each how many of it the video has, and this process's work, in numbers of one unit.
        """
        raise NotImplementedError

    @abstractmethod
    def stream(
        self,
        pipeline: Any,
        prompt: str | PromptSchedule,
        start: Start,
        config: FlowCacheConfig,
        trace: Trace,
        state: State | None,
        on_step_end: StepCallback | None = None,
    ) -> Iterator[VideoPart]:
        """Generate a video part by part; see the pipeline's ``stream``."""

    @abstractmethod
    def with_video(self, **changes: Any) -> Self:
        """A copy with other settings of the video."""

    @abstractmethod
    def pilot(self) -> Self:
        """A copy for the short video of a search for settings."""
