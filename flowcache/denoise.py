"""The loop: drives any chunk model through a staircase of chunks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .chunk_model import ChunkInput, ChunkModel, Solver
from .finite import CAUSES, FiniteWatch, NotFiniteError
from .flops import GainSplit
from .kv.config import KVCompressionConfig, KVStorageConfig
from .kv.manager import CacheManager
from .progress import Progress
from .reuse.forecast import Forecast
from .reuse.policy import Decision, ReusePolicy
from .schedule import StaircaseSchedule
from .state import State
from .trace import ChunkEvent, Trace, WindowRecord
from .window import Window, with_condition_noise


@dataclass(frozen=True)
class CleanChunk:
    """A chunk just finished: its index, first frame and latents ``[channels, frames, h, w]``."""

    chunk: int
    start_frame: int
    latents: Tensor


@dataclass(frozen=True)
class LoopOptions:
    """How the loop runs chunks that do not move.

    Attributes:
        whole_window: also run waiting and finished chunks whenever the model runs, as a model without a
            cache must. False: only live chunks, the others are seen through the cache.
        refresh_given: run the given chunks at every step and not just once before the first, as the original
            FlowCache does in synchronous mode.
        clean_pass: run a chunk once more when it has become clean, so that the keys and values it leaves are
            those of clean latents, as MAGI-1 does. False: it leaves those of its last computed step.
        condition_noise: share of noise mixed into the frames of the prefix, 0 to 1.
        compression: how the cache is compressed; None: not at all.
        clean_range: newest clean chunks that a live chunk sees; None: all.
        storage: how the cache keeps clean chunks; None: as live ones.
        draw_noise: step and shape to a noise tensor; None draws from torch's default generator.
    """

    whole_window: bool = False
    refresh_given: bool = False
    clean_pass: bool = False
    condition_noise: float = 0.0
    compression: KVCompressionConfig | None = None
    clean_range: int | None = None
    storage: KVStorageConfig | None = None
    draw_noise: Callable[[int, torch.Size], Tensor] | None = None


@dataclass
class Denoiser:
    """Denoises one window after another with the same model and method.

    Args:
        model: what evaluates chunks.
        policy: which live chunks may skip the model.
        forecast: what stands in for the model then.
        options: how chunks that do not move are run.
        trace: what happened is added here.
        on_step: called after every step, to show progress.
    """

    model: ChunkModel
    policy: ReusePolicy
    forecast: Forecast
    options: LoopOptions = field(default_factory=LoopOptions)
    trace: Trace = field(default_factory=Trace)
    on_step: Callable[[], None] | None = None
    _progress: Progress | None = field(default=None, init=False, repr=False)
    _loaded: State | None = field(default=None, init=False, repr=False)
    _finite: FiniteWatch = field(init=False, repr=False)

    def run(self, window: Window, schedule: StaircaseSchedule, solver: Solver) -> Iterator[CleanChunk]:
        """Denoise a window in place; yield each chunk at the step at which it becomes clean.

        Chunks that nothing reads any more are dropped from the window and, as far as the model's reach or
        ``clean_range`` bounds what is seen, from the cache.

        Raises:
            NotFiniteError: latents became NaN or infinite; no chunk is yielded after that.
        """
        self._finite = FiniteWatch()
        self.policy.begin(solver.times, self.forecast)
        self.forecast.begin(solver.times, self.policy.needs_errors)
        lengths = [self.model.num_tokens(span.frames) for span in window.chunks]
        cache = self._new_cache(schedule, lengths)
        split = GainSplit(self.model, lengths, window.num_given, schedule.num_steps)
        parts = {"policy": self.policy, "forecast": self.forecast, "solver": solver}
        progress = self._progress = Progress(parts | {"window": window, "cache": cache})
        if self._loaded is None:
            self._record_window(window, schedule, cache)
        else:
            progress.load_state_dict(self._loaded, self.model.cache_layout().device)
            self._loaded = None
            yield from self._hand_over(progress, window, schedule)
        for step in range(progress.steps, len(schedule)):
            started, live = time.perf_counter(), schedule.live(step)
            inputs = self._inputs(window, schedule, solver, step, cache)
            decisions = self._decide(step, len(schedule), live, inputs)
            reused = [c for c in live if decisions[c].reuse]
            before = self._prefill([inputs[c] for c in range(window.num_given)], cache) if step == 0 else []
            ran = self._chunks_to_run(window, schedule, live, reused, step)
            before += self._make_room(inputs, cache, ran, schedule, step)
            ran = [c for c in ran if c not in before or c < window.num_given]
            unfinished = [c for c in ran if schedule.local_step(c, step) < schedule.num_steps]
            moves = self._evaluate([inputs[c] for c in ran], unfinished, cache, step)
            moves |= self._forecast([inputs[c] for c in reused])
            for chunk, local_step in live.items():
                self._advance(window, solver, chunk, local_step, moves[chunk], chunk in reused)
            ran = before + ran
            edges = ran + reused if self.forecast.runs_edges else ran
            cleaned = (
                [c for c in ran if c not in live and c >= window.num_given] if self.options.clean_pass else []
            )
            # First, so that the store needs no room for chunks that nothing reads any more.
            cache.release(step + 1)
            cache.settle(self._final(schedule, step))
            flops = split.step(ran, edges, live, first=step == 0, cleaned=cleaned, seen=cache.seen)
            self._record_step(step, live, decisions, time.perf_counter() - started, cache, flops)
            progress.steps = step + 1
            progress.clean = [c for c, k in live.items() if k == schedule.num_steps - 1]
            self._forget(progress.clean, solver)
            yield from self._hand_over(progress, window, schedule)
        self._progress = None

    @property
    def in_window(self) -> bool:
        """Whether a window is on its way, so that there is a state to speak of."""
        return self._progress is not None

    def state_dict(self) -> State:
        """What is needed to go on behind the chunk that ``run`` yielded last.

        Good until the next one is asked for, as its tensors are those that the loop works on. The state of
        what ``draw_noise`` draws from is not among it.

        Raises:
            RuntimeError: no window is on its way.
        """
        if self._progress is None:
            raise RuntimeError("state_dict has nothing to tell before run and after it")
        return self._progress.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Let the next ``run`` go on from there.

        It takes the same window as it was at its start, the same schedule and a fresh solver; the steps that
        were taken are in the trace already. The state is not held for longer than that.
        """
        self._loaded = state

    def _hand_over(
        self, progress: Progress, window: Window, schedule: StaircaseSchedule
    ) -> Iterator[CleanChunk]:
        """Yield the chunks that the last step made clean; then drop what nothing reads any more."""
        if progress.clean:
            self._finite.check()
        while progress.clean:
            chunk = progress.clean.pop(0)
            yield CleanChunk(chunk, window.chunks[chunk].start, window.latents(chunk))
        self._drop_unread(window, schedule, progress.steps - 1)

    def _new_cache(self, schedule: StaircaseSchedule, lengths: list[int]) -> CacheManager:
        return CacheManager(self.model, schedule, lengths, self.options)

    def _inputs(
        self, window: Window, schedule: StaircaseSchedule, solver: Solver, step: int, cache: CacheManager
    ) -> dict[int, ChunkInput]:
        """What the chunks that may run at this step would show the model."""
        chunks, level = self._shown(window, schedule, step), self.options.condition_noise
        if level > 0 and any(window.num_prefix_of(chunk) for chunk in chunks):
            channels, *size = window.frame_shape
            shape = torch.Size((channels, window.num_prefix, *size))
            noise = self._draw_noise(step, shape, window.latents(chunks[0]).device)
            latents = with_condition_noise(window, chunks, level, noise)
        else:
            latents = {chunk: window.latents(chunk) for chunk in chunks}
        inputs = {}
        for chunk in chunks:
            span, held = window.chunks[chunk], window.num_given_of(chunk)
            noised, local_step = window.num_prefix_of(chunk), schedule.local_step(chunk, step)
            times = [self.model.condition_timestep(level)] * noised
            times += [self.model.condition_timestep(0.0)] * (held - noised)
            times += [self._timestep(solver, schedule, local_step)] * (span.frames - held)
            progress = min(max(0, local_step), schedule.num_steps)
            first = None if self.options.whole_window else cache.first_chunk(chunk, step)
            inputs[chunk] = ChunkInput(chunk, span.start, latents[chunk], tuple(times), progress, first)
        return inputs

    def _shown(self, window: Window, schedule: StaircaseSchedule, step: int) -> list[int]:
        """Chunks that may run at a step, in order; no others are looked at."""
        if self.options.whole_window:
            return list(range(len(window.chunks)))
        given = range(window.num_given) if step == 0 or self.options.refresh_given else ()
        finished = schedule.finished(step) if self.options.clean_pass else ()
        return [*given, *finished, *schedule.live(step)]

    def _drop_unread(self, window: Window, schedule: StaircaseSchedule, step: int) -> None:
        """Drop the latents of chunks that no later step shows the model."""
        if self.options.whole_window:
            return
        given = range(window.num_given) if step == 0 and not self.options.refresh_given else ()
        # a clean pass reads a chunk once more, at the step after its last
        read_until = step if self.options.clean_pass else step + 1
        for chunk in (*given, *schedule.finished(read_until)):
            window.drop(chunk)

    def _draw_noise(self, step: int, shape: torch.Size, device: torch.device) -> Tensor:
        if self.options.draw_noise is None:
            return torch.randn(shape, device=device)
        return self.options.draw_noise(step, shape)

    @staticmethod
    def _timestep(solver: Solver, schedule: StaircaseSchedule, local_step: int) -> float:
        if local_step >= schedule.num_steps:
            return 0.0
        return solver.timestep(max(0, local_step))

    def _decide(
        self, step: int, num_steps: int, live: dict[int, int], inputs: dict[int, ChunkInput]
    ) -> dict[int, Decision]:
        indicators: dict[int, Tensor] = {}
        if self.policy.needs_indicator:
            shown = [inputs[c] for c in (inputs if self.options.whole_window else live)]
            indicators = dict(zip((i.chunk for i in shown), self.model.indicators(shown), strict=True))
        decisions = self.policy.decide(step, num_steps, live, indicators)
        for chunk, decision in decisions.items():
            if not math.isfinite(decision.distance or 0):
                self._finite.check()
                raise NotFiniteError(
                    f"distance of chunk {chunk} at step {step}: expected a finite number, got "
                    f"{decision.distance}; {CAUSES}."
                )
        # A chunk that was never computed has nothing to be forecast from, whatever the policy says.
        known = {c: self.forecast.knows(c) for c in decisions}
        if self.policy.joint:
            known = dict.fromkeys(known, all(known.values()))
        return {c: d if known[c] else replace(d, reuse=False) for c, d in decisions.items()}

    def _prefill(self, given: list[ChunkInput], cache: CacheManager) -> list[int]:
        """Fill the cache with the given chunks, unless they are run at every step anyway."""
        if self.options.whole_window or self.options.refresh_given:
            return []
        chunks = [item.chunk for item in given]
        for group in [given] if cache.fits(chunks) else [[item] for item in given]:
            cache.make_room([item.chunk for item in group], step=0)
            self._evaluate(group, [], cache, step=0)
            cache.settle([item.chunk for item in group])
        return chunks

    def _make_room(
        self,
        inputs: dict[int, ChunkInput],
        cache: CacheManager,
        chunks: list[int],
        schedule: StaircaseSchedule,
        step: int,
    ) -> list[int]:
        """Compress the cache if the chunks do not fit; before that, run those that have just become clean.

        They would otherwise run beside the new ones, for which there is no room yet.
        """
        if cache.fits(chunks):
            return []
        finished = [c for c in chunks if c >= schedule.first_chunk and c not in schedule.live(step)]
        self._evaluate([inputs[c] for c in finished], [], cache, step)
        cache.settle(finished)
        cache.make_room(chunks, step)
        return finished

    def _chunks_to_run(
        self,
        window: Window,
        schedule: StaircaseSchedule,
        live: dict[int, int],
        reused: list[int],
        step: int,
    ) -> list[int]:
        computed = [c for c in live if c not in reused]
        if self.options.whole_window:
            return list(range(len(window.chunks))) if computed else []
        given = list(range(window.num_given)) if self.options.refresh_given else []
        finished = schedule.finished(step) if self.options.clean_pass else []
        return [*given, *finished, *computed]

    def _final(self, schedule: StaircaseSchedule, step: int) -> Sequence[int]:
        """Chunks whose keys and values are final after this step; none after the last one."""
        if step + 1 == len(schedule):
            return ()
        return schedule.finished(step if self.options.clean_pass else step + 1)

    def _evaluate(
        self, inputs: list[ChunkInput], wanted: list[int], cache: CacheManager, step: int
    ) -> dict[int, Tensor]:
        """Run the model on all inputs in one packed call; velocities of those that are ``wanted``."""
        if not inputs:
            return {}
        cache.enter([item.chunk for item in inputs], step)
        tokens = self.model.embed(inputs)
        outputs = self.model.blocks(inputs, tokens, cache.cache)
        for item, output in zip(inputs, outputs, strict=True):
            if item.chunk not in wanted:  # the others are known by their latents
                self._finite.observe(f"output of the model for chunk {item.chunk} at step {step}", output)
        places = [i for i, item in enumerate(inputs) if item.chunk in wanted]
        inputs, tokens, outputs = ([values[i] for i in places] for values in (inputs, tokens, outputs))
        if not inputs:
            return {}
        velocities = self.model.head(inputs, outputs)
        self.forecast.observe_evaluation(inputs, tokens, outputs, velocities)
        return dict(zip((item.chunk for item in inputs), velocities, strict=True))

    def _forecast(self, inputs: list[ChunkInput]) -> dict[int, Tensor]:
        if not inputs:
            return {}
        return dict(zip((i.chunk for i in inputs), self.forecast.predict(self.model, inputs), strict=True))

    def _advance(
        self, window: Window, solver: Solver, chunk: int, local_step: int, move: Tensor, reused: bool
    ) -> None:
        """Take a chunk one step on, by its velocity or by a forecast displacement; given frames stay."""
        before = window.latents(chunk)
        if reused and not self.forecast.gives_velocity:
            after = before + move
            solver.skip(chunk)
        else:
            after = solver.step(chunk, local_step, before, move)
        place = f"latents of chunk {chunk} after its step {local_step} (step {self._progress.steps} of all)"
        self._finite.observe(place, after)
        held = window.chunks[chunk].held
        if held:
            after[:, :held] = before[:, :held]
        if not reused:
            self.forecast.observe_step(chunk, local_step, before, after)
        before.copy_(after)

    def _forget(self, chunks: Sequence[int], solver: Solver) -> None:
        for part in (self.policy, self.forecast, solver):
            for chunk in chunks:
                part.forget(chunk)

    def _record_window(self, window: Window, schedule: StaircaseSchedule, cache: CacheManager) -> None:
        frames, held = [span.frames for span in window.chunks], cache.cache
        sizes = (held.nbytes, held.host_nbytes)
        self.trace.begin_window(
            WindowRecord(schedule.num_steps, schedule.stride, window.num_given, frames, *sizes)
        )

    def _record_step(
        self,
        step: int,
        live: dict[int, int],
        decisions: dict[int, Decision],
        seconds: float,
        cache: CacheManager,
        flops: dict[str, float],
    ) -> None:
        events = [
            ChunkEvent(c, k, decisions[c].reuse, decisions[c].distance, decisions[c].accumulated)
            for c, k in live.items()
        ]
        changes = (cache.pop_events(), cache.pop_quantizations())
        if self.options.compression:
            self.trace.add_seconds("compress", cache.pop_seconds())
        self.trace.add_step(step, events, seconds, cache.cache.num_tokens, flops, *changes)
        if self.on_step:
            self.on_step()
