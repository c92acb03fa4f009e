"""The loop: drives any chunk model through a staircase of chunks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .chunk_model import ChunkInput, ChunkModel, Solver
from .config import FlowCacheConfig
from .finite import CAUSES, FiniteWatch, NotFiniteError
from .flops import GainSplit
from .kv.manager import CacheManager
from .prompt_schedule import PromptTrack
from .reuse.forecast import FORECASTS
from .reuse.policy import Decision
from .schedule import StaircaseSchedule
from .state import State, on_device
from .trace import ChunkEvent, Trace, WindowRecord
from .window import Window


@dataclass(frozen=True)
class CleanChunk:
    """A chunk just finished: its index, first frame and latents ``[channels, frames, h, w]``."""

    chunk: int
    start_frame: int
    latents: Tensor


@dataclass
class Denoiser:
    """Denoises one window after another with the same model and method.

    Args:
        condition_noise: share of noise mixed into the frames of the prefix, 0 to 1.
        draw_noise: returns that noise for a step and a shape; None draws from torch's default generator.
        clean_time: time of the model's clock at which chunks run once more when they are clean.
        prompts: says which text each chunk has.
        on_step: called after every step.
    """

    model: ChunkModel
    config: FlowCacheConfig = field(default_factory=FlowCacheConfig)
    trace: Trace = field(default_factory=Trace)
    condition_noise: float = 0.0
    draw_noise: Callable[[int, torch.Size], Tensor] | None = None
    clean_time: float = 0.0
    prompts: PromptTrack = field(default_factory=PromptTrack)
    on_step: Callable[[], None] | None = None
    _run: WindowRun | None = field(default=None, init=False, repr=False)
    _loaded: State | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.policy, self.forecast = self.config.make_policy(), FORECASTS[self.config.forecast]()
        #: That share the video; each has all latents.
        self.processes = self.model.cache_layout().processes

    def run(self, window: Window, schedule: StaircaseSchedule, solver: Solver) -> Iterator[CleanChunk]:
        """Denoise a window in place; yield each chunk at the step at which it becomes clean.

        Chunks that no later step reads are dropped from the window and, as far as the model's reach or
        ``clean_range`` bounds what is seen, from the cache.

        Raises:
            NotFiniteError: latents became NaN or infinite; no chunk is yielded after that.
        """
        self._run = WindowRun(self, window, schedule, solver)
        if self._loaded is None:
            frames, manager = [span.frames for span in window.chunks], self._run.cache
            shape = (schedule.num_steps, schedule.stride, window.num_given, frames)
            held = (manager.cache.nbytes, manager.cache.host_nbytes, manager.plain_nbytes)
            each = self.processes.world.gather_objects(held)
            by_rank = [own[0] for own in each] if len(each) > 1 else []
            self.trace.begin_window(WindowRecord(*shape, *map(sum, zip(*each, strict=True)), by_rank))
        else:
            self._run.load_state_dict(self._loaded)
            self._loaded = None
        yield from self._run.clean_chunks()
        self._run = None

    @property
    def in_window(self) -> bool:
        """Whether a window is being denoised, so that there is a state to save."""
        return self._run is not None

    @property
    def steps(self) -> int:
        """Steps taken of the window that is being denoised, if any."""
        return self._run.steps if self._run else 0

    def state_dict(self) -> State:
        """State behind the chunk that ``run`` yielded last, ``in_window``, without that of ``draw_noise``.

        Valid until the next chunk is asked for, as its tensors are those of the loop.
        """
        if self._run is None:
            raise RuntimeError("state_dict: expected a window that is being denoised, got none")
        return self._run.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Make the next ``run`` continue from a state, which it releases as soon as it is read.

        It takes the same window as it was at its start, the same schedule and a fresh solver.
        """
        self._loaded = state


class WindowRun:
    def __init__(self, denoiser: Denoiser, window: Window, schedule: StaircaseSchedule, solver: Solver) -> None:
        self.denoiser, self.config, self.model = denoiser, denoiser.config, denoiser.model
        self.policy, self.forecast = denoiser.policy, denoiser.forecast
        self.window, self.schedule, self.solver = window, schedule, solver
        self.finite = FiniteWatch(denoiser.processes.world)
        self.forecast.begin(solver.times)
        self.policy.begin(schedule.num_steps, solver.times, self.forecast)
        lengths = [self.model.num_tokens(span.frames) for span in window.chunks]
        self.cache = CacheManager(self.model, schedule, lengths, self.config)
        self.split = GainSplit(self.model, lengths, window.num_given, schedule.num_steps)
        #: Steps taken, and chunks that the last of them made clean, to be yielded.
        self.steps, self.clean = 0, list[int]()

    def clean_chunks(self) -> Iterator[CleanChunk]:
        yield from self._hand_over()
        for step in range(self.steps, len(self.schedule)):
            self._take_step(step)
            yield from self._hand_over()

    def state_dict(self) -> State:
        own = {"steps": self.steps, "clean": list(self.clean)}
        return own | {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: State) -> None:
        self.steps, self.clean = state["steps"], list(state["clean"])
        device = self.model.cache_layout().device
        for name, part in self._parts.items():
            # The cache, by far the largest, has memory of its own that it copies to.
            part.load_state_dict(state[name] if name == "cache" else on_device(state[name], device))

    @property
    def _parts(self) -> dict[str, Any]:
        """All that remembers something from step to step."""
        names = ("policy", "forecast", "solver", "window")
        return {name: getattr(self, name) for name in names} | {"cache": self.cache.cache}

    def _take_step(self, step: int) -> None:
        started, live = time.perf_counter(), self.schedule.live(step)
        recomputes = self._note_switches(step, live) and self._recomputes and step > 0
        filling = self.cache.recomputed(step) if recomputes else self._given(step)
        inputs = self._inputs(step, live, filling)
        decisions = self._decide(step, live, inputs, recomputes)
        reused = [c for c in live if decisions[c].reuse]
        wanted = self._chunks_to_run(step, live, reused)
        if recomputes:
            self.cache.cache.clear()
        ran = self._prefill(inputs, filling, step)
        ran += self._make_room(inputs, wanted, live, step)
        wanted = [c for c in wanted if c not in ran]
        moves = self._evaluate([inputs[c] for c in wanted], step)
        if reused:
            forecast = self.forecast.predict(self.model, [inputs[c] for c in reused])
            moves |= dict(zip(reused, forecast, strict=True))
        for chunk, local_step in live.items():
            self._advance(chunk, local_step, moves[chunk], chunk in reused)
        ran += wanted
        self.cache.leave(step + 1)
        self._record_step(step, live, decisions, started, ran)
        self.steps = step + 1
        self.clean = [c for c, k in live.items() if k == self.schedule.num_steps - 1]
        for part in (self.policy, self.forecast, self.solver):
            for chunk in self.clean:
                part.forget(chunk)
        if self.denoiser.on_step:
            self.denoiser.on_step()

    def _hand_over(self) -> Iterator[CleanChunk]:
        """Yield the chunks that the last step made clean; then drop latents that no later step reads."""
        if self.clean:
            self.finite.check()
        while self.clean:
            chunk = self.clean.pop(0)
            yield CleanChunk(chunk, self.window.chunks[chunk].start, self.window.latents(chunk))
        if self.config.whole_window or not self.steps:
            return
        # A clean pass reads a chunk once more, at the step after its last.
        done = self.schedule.first_below(self.schedule.num_steps + self.config.clean_pass, self.steps)
        kept = range(self.window.num_given if self.config.refresh_given else 0)
        if self._recomputes:
            kept = self.cache.recomputed(self.steps)
        for chunk in self.window.held:
            if chunk < done and chunk not in kept:
                self.window.drop(chunk)

    @property
    def _recomputes(self) -> bool:
        return self.config.prompt_switch == "recompute"

    def _note_switches(self, step: int, live: dict[int, int]) -> bool:
        """Note in the trace chunks that start with another text than the one before; returns whether there are any."""
        prompts, trace, found = self.denoiser.prompts, self.denoiser.trace, []
        for chunk in range(self.schedule.first_waiting(step - 1), max(live) + 1):
            start = self.window.chunks[chunk].start
            if (text := prompts.find(start)) != prompts.find(start - self.window.longest):
                found.append({"window": len(trace.windows) - 1, "chunk": chunk, "prompt": prompts.prompts[text]})
        if found:
            trace.settings.setdefault("prompt_switches", []).extend(found)
        return bool(found)

    def _inputs(self, step: int, live: dict[int, int], filling: Sequence[int]) -> dict[int, ChunkInput]:
        """What the chunks that may run at this step show the model, in order; no others are looked at.

        ``filling``: clean chunks that run before the others. A chunk has the text that holds where it starts; where a
        change of the prompt recomputes, a clean one has that of the newest chunk.
        """
        window, schedule, model, level = self.window, self.schedule, self.model, self.denoiser.condition_noise
        chunks = sorted({*filling, *self._chunks_to_run(step, live, ())})
        noise, inputs, newest = self._draw_condition_noise(chunks, step), {}, window.chunks[max(live)]
        for chunk in chunks:
            span, held, noised = window.chunks[chunk], window.count_given(chunk), window.count_prefix(chunk)
            local_step = min(max(0, schedule.local_step(chunk, step)), schedule.num_steps)
            clean = local_step == schedule.num_steps
            own = self.denoiser.clean_time if clean else self.solver.timestep(local_step, chunk)
            times = [model.condition_timestep(level)] * noised
            times += [model.condition_timestep(0.0)] * (held - noised) + [own] * (span.frames - held)
            first = None if self.config.whole_window else self.cache.first_chunk(chunk, step)
            latents = window.noised_latents(chunk, level, noise)
            text = self.denoiser.prompts.find((newest if clean and self._recomputes else span).start)
            inputs[chunk] = ChunkInput(chunk, span.start, latents, tuple(times), local_step, first, text)
        return inputs

    def _draw_condition_noise(self, chunks: Sequence[int], step: int) -> Tensor | None:
        """Noise for the frames of the prefix; None if none is wanted or no chunk has any."""
        window, draw = self.window, self.denoiser.draw_noise
        if self.denoiser.condition_noise == 0 or not any(map(window.count_prefix, chunks)):
            return None
        channels, *size = window.frame_shape
        shape = torch.Size((channels, window.num_prefix, *size))
        if draw is not None:
            return draw(step, shape)
        device = window.latents(chunks[0]).device
        return self.denoiser.processes.world.broadcast(torch.randn(shape, device=device), device)

    def _chunks_to_run(self, step: int, live: Iterable[int], reused: Sequence[int]) -> list[int]:
        computed = [c for c in live if c not in reused]
        if self.config.whole_window:
            return list(range(len(self.window.chunks))) if computed else []
        given = range(self.window.num_given) if self.config.refresh_given else ()
        return [*given, *self._finished(step), *computed]

    def _finished(self, step: int) -> Sequence[int]:
        """Chunks that run once more at a step, as the one before made them clean."""
        return self.schedule.finished(step) if self.config.clean_pass else ()

    def _decide(
        self, step: int, live: dict[int, int], inputs: dict[int, ChunkInput], recomputes: bool
    ) -> dict[int, Decision]:
        indicators: dict[int, Tensor] = {}
        if self.policy.needs_indicator:
            shown = [inputs[c] for c in (inputs if self.config.whole_window else live)]
            indicators = dict(zip((i.chunk for i in shown), self.model.indicators(shown), strict=True))
        decisions = self.policy.decide(step, len(self.schedule), live, indicators)
        if self.policy.reads_tensors:  # processes that decided differently would wait for each other forever
            decisions = self.denoiser.processes.world.broadcast_object(decisions)
        for chunk, decision in decisions.items():
            if not math.isfinite(decision.distance or 0):
                self.finite.check()
                raise NotFiniteError(
                    f"distance of chunk {chunk} at step {step}: expected a finite number, got "
                    f"{decision.distance}; {CAUSES}."
                )
        # A chunk that was never computed has nothing to be forecast from, whatever the policy says.
        reuse = {c: d.reuse and self.forecast.knows(c) and not recomputes for c, d in decisions.items()}
        if self.policy.joint or self.config.whole_window:  # where all chunks run if one does
            reuse = dict.fromkeys(reuse, all(reuse.values()))
        return {c: replace(d, reuse=reuse[c]) for c, d in decisions.items()}

    def _given(self, step: int) -> list[int]:
        """The given chunks at the first step, unless they run at every step anyway."""
        runs_always = self.config.whole_window or self.config.refresh_given
        return [] if step or runs_always else list(range(self.window.num_given))

    def _prefill(self, inputs: dict[int, ChunkInput], chunks: list[int], step: int) -> list[int]:
        """Fill the cache with clean chunks before a step."""
        if not chunks:
            return []
        for group in [chunks] if self.cache.fits(chunks) else [[chunk] for chunk in chunks]:
            self.cache.make_room(group, step)
            self._evaluate([inputs[c] for c in group], step, next_step=step)
            self.cache.leave(next_step=step)
        return chunks

    def _make_room(
        self, inputs: dict[int, ChunkInput], chunks: list[int], live: dict[int, int], step: int
    ) -> list[int]:
        """Compress the cache if the chunks do not fit; before that, run those that have just become clean.

        They would otherwise run beside the new ones, for which there is no room yet.
        """
        if self.cache.fits(chunks):
            return []
        finished = [c for c in chunks if c >= self.schedule.first_chunk and c not in live]
        self.cache.make_room(finished, step)  # which have their rows, except in a cache that was filled again
        self._evaluate([inputs[c] for c in finished], step)
        self.cache.leave(step + 1)
        self.cache.make_room(chunks, step)
        return finished

    def _evaluate(self, inputs: list[ChunkInput], step: int, next_step: int | None = None) -> dict[int, Tensor]:
        """Run the model on all inputs in one packed call; velocities of those that are not clean.

        ``next_step``: the first that reads the keys and values of this call; None: the one after it.
        """
        if not inputs:
            return {}
        self.cache.enter([item.chunk for item in inputs], step, step + 1 if next_step is None else next_step)
        tokens = self.model.embed(inputs)
        outputs = self.model.blocks(inputs, tokens, self.cache.cache)
        noisy = [i for i, item in enumerate(inputs) if item.local_step < self.schedule.num_steps]
        for i, item in enumerate(inputs):
            if i not in noisy:  # the others are checked by their latents
                self.finite.observe(f"output of the model for chunk {item.chunk} at step {step}", outputs[i])
        inputs, tokens, outputs = ([values[i] for i in noisy] for values in (inputs, tokens, outputs))
        if not inputs:
            return {}
        velocities = self.model.head(inputs, outputs)
        for item, velocity in zip(inputs, velocities, strict=True):
            self.policy.observe(item.chunk, item.local_step, velocity)
        self.forecast.observe_evaluation(inputs, tokens, outputs, velocities)
        return dict(zip((item.chunk for item in inputs), velocities, strict=True))

    def _advance(self, chunk: int, local_step: int, move: Tensor, reused: bool) -> None:
        """Advance a chunk by a step, by its velocity or a forecast displacement; given frames stay."""
        latents, held = self.window.latents(chunk), self.window.chunks[chunk].held
        before = latents if reused else self.forecast.correct(chunk, local_step, latents, self.solver)
        if reused and not self.forecast.gives_velocity:
            after = before + move
            self.solver.skip(chunk)
        else:
            after = self.solver.step(chunk, local_step, before, move)
        place = f"latents of chunk {chunk} after its step {local_step} (step {self.steps} of all)"
        self.finite.observe(place, after)
        if held:
            after[:, :held] = latents[:, :held]
        self.forecast.observe_step(chunk, local_step, before, after, reused)
        latents.copy_(after)

    def _record_step(
        self, step: int, live: dict[int, int], decisions: dict[int, Decision], started: float, ran: list[int]
    ) -> None:
        """Add the step to the trace; time first, as the rest is not part of it."""
        seconds, cache, trace = time.perf_counter() - started, self.cache, self.denoiser.trace
        reused = [c for c, decision in decisions.items() if decision.reuse]
        edges = ran + reused if self.forecast.runs_edges else ran
        cleaned = [c for c in ran if c in self._finished(step)]
        flops = self.split.step(ran, edges, live, first=step == 0, cleaned=cleaned, seen=cache.seen)
        events = [
            ChunkEvent(c, k, decisions[c].reuse, decisions[c].distance, decisions[c].accumulated)
            for c, k in live.items()
        ]
        held = cache.cache
        changes = (held.pop_events(), held.pop_quantizations())
        if self.config.compression:
            trace.add_seconds("compress", held.pop_seconds())
        trace.add_step(step, events, seconds, held.num_tokens, flops, *changes)
