"""Interfaces that a model implements to be driven by the loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .kv.cache import ChunkKVCache
from .kv.layout import CacheLayout
from .state import State


@dataclass(frozen=True)
class ChunkInput:
    """One chunk as the model sees it at one step.

    Attributes:
        chunk: index of the chunk in the window.
        start_frame: first latent frame of the chunk, counted from the start of the window.
        latents: ``[channels, frames, height, width]``, fp32; given frames may carry condition noise.
        timesteps: time of the model's clock, one per frame; kept on the host, where schedules are made.
        local_step: steps that the chunk has made; the number of its steps once it is clean or given.
        first_chunk: oldest chunk that it sees; None: all that the cache holds.
        text: index of its text, for models that have several in a video.
    """

    chunk: int
    start_frame: int
    latents: Tensor
    timesteps: tuple[float, ...]
    local_step: int = 0
    first_chunk: int | None = None
    text: int = 0

    @property
    def stop_frame(self) -> int:
        return self.start_frame + len(self.timesteps)


class ChunkModel(Protocol):
    """A transformer that runs some chunks of a window while the others wait.

    ``embed``, ``blocks`` and ``head`` in a row are one evaluation; they are separate because a forecast may
    replace ``blocks`` alone. Lists hold one tensor per chunk; ``blocks`` packs them into one call. Where processes
    share a video, tokens and branches are a process's own; velocities and indicators are whole in all of them.
    """

    #: guidance streams, each with its own keys and values
    num_branches: int

    #: True: a chunk sees all chunks that run. False: itself and what entered the cache before it.
    bidirectional: bool

    #: Whether the original model runs all chunks of a window at every step; otherwise it runs the live ones.
    runs_whole_window: bool

    def indicators(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        """Per chunk, the tensor whose relative change decides reuse."""

    def embed(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        """Tokens that enter the block stack, ``[1 or branches, tokens, dim]`` per chunk."""

    def blocks(self, inputs: Sequence[ChunkInput], tokens: Sequence[Tensor], cache: ChunkKVCache) -> list[Tensor]:
        """Run the block stack on all chunks at once; ``[branches, tokens, dim]`` per chunk.

        Every layer first writes the chunks' keys and values into the cache and then lets each chunk attend
        to what it may see there.
        """

    def head(self, inputs: Sequence[ChunkInput], outputs: Sequence[Tensor]) -> list[Tensor]:
        """Guided velocity of each chunk, ``[channels, frames, height, width]``, fp32."""

    def num_tokens(self, num_frames: int) -> int: ...

    def condition_timestep(self, level: float) -> float:
        """Time of the model's clock for given frames with that share of noise."""

    def cache_layout(self) -> CacheLayout: ...

    def retime(self, keys: Tensor, frames: Tensor) -> Tensor:
        """Turn keys of the cache by whole frames into the future; height and width stay.

        Only for the compactor ``retimed``; a model may lack it.

        Args:
            keys: ``[branches, rows, heads, head_dim]``.
            frames: ``[branches, rows, heads]``.
        """

    def reach(self, local_step: int | None) -> int | None:
        """Chunks, itself included, that one sees at a local step (None: given); None: all before it."""

    def block_flops(self, num_tokens: int, num_keys: int, local_step: int | None = None) -> float:
        """FLOPs of ``blocks``, over all branches, on a chunk that sees keys, its own included.

        ``local_step``: the number of its steps once it is clean; None: it is given or waits.
        """

    def edge_flops(self, num_tokens: int, local_step: int | None = None) -> float:
        """FLOPs of ``embed`` and ``head`` on a chunk, over all branches; arguments as in ``block_flops``."""


class Solver(Protocol):
    """Integrates the velocity of one chunk over one of its steps; here, without a history."""

    #: starts of the steps and, last, the end on the path from noise to a clean chunk: the variable that the
    #: model's velocity is integrated over
    times: Sequence[float]

    def timestep(self, local_step: int, chunk: int = 0) -> float:
        """Time of the model's clock at the start of a local step of a chunk."""

    def step(self, chunk: int, local_step: int, latents: Tensor, velocity: Tensor) -> Tensor:
        """Latents at the end of the step, ``[channels, frames, height, width]``."""

    def history(self, chunk: int) -> State | None:
        """What the next step of a chunk depends on beside its arguments."""
        return None

    def restore(self, chunk: int, history: State | None) -> None:
        """Return to an earlier ``history`` of a chunk."""

    def skip(self, chunk: int) -> None:
        """Drop a chunk's history, as it moved without the solver."""

    def forget(self, chunk: int) -> None:
        """Drop the state of a chunk that has become clean."""

    def state_dict(self) -> State:
        """The history of all chunks."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Continue from the state of another solver of the same steps."""
