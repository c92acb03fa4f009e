"""What the page shows of runs: reuse map and KV cache as SVG, and figures."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..plots.style import format_bytes, format_flops, format_saving, format_time
from ..prompt_schedule import frame_at
from ..schedule import StaircaseSchedule
from ..trace import Trace
from .studio import Run

#: Height of a chunk's row where a step is one wide; the page stretches both.
ROW, BAR = 10, 8


def describe_run(run: Run, others: Sequence[Run] = ()) -> dict[str, Any]:
    """All that the page shows of a run, for JSON; time and FLOPs are compared with those of ``others``."""
    job, trace = run.job, run.trace
    about = {"label": run.request.label, "state": run.state, "error": run.error, "notes": list(_notes(run))}
    if job is None:
        return about
    if run.state == "computing" and not trace.windows:
        tunes = job.tuning is not None and job.sampler.is_loaded
        about["state"] = "trying intervals on a short video" if tunes else "loading the model"
    model, done = job.sampler.model, sum(part.count for part in run.parts)
    height, width = model.size
    made = run.state == "done"
    return about | {
        "fps": float(model.video.fps),
        "size": [width, height],
        "strips": [strip for part in run.parts for strip in part.strips],
        "frames": [done, max(done, model.video.num_frames)],
        "map": reuse_svg(trace),
        "cache": cache_svg(trace),
        "tokens": max((record.kv_tokens for record in list(trace.steps)), default=0),
        "facts": list(_facts(run, others)),
        "files": [[name, str(path.resolve())] for name, path in job.files.items() if made],
    }


def reuse_svg(trace: Trace) -> str:
    """Draw chunks downwards and steps to the right, window beside window: computed, reused, given and to come."""
    paths: dict[str, list[str]] = defaultdict(list)
    records = list(trace.steps)  # before their windows, as the run goes on
    starts, width = _starts(trace)
    for window, left in zip(trace.windows, starts, strict=False):
        for chunk in range(len(window.chunk_frames)):
            own = window.stride * (chunk - window.first_chunk)
            given = chunk < window.first_chunk
            span = (left, _steps(window)) if given else (left + own, window.num_steps)
            paths["given" if given else "ahead"].append(_bar(chunk, *span))
    for record in records:
        for event in record.events:
            kind = "reused" if event.reused else "computed"
            paths[kind].append(_bar(event.chunk, starts[record.window] + record.step, 1))
    rows = max((len(window.chunk_frames) for window in trace.windows), default=1)
    drawn = "".join(f'<path class="{kind}" d="{"".join(bars)}"/>' for kind, bars in paths.items())
    return _svg(width, rows * ROW, drawn)


def cache_svg(trace: Trace) -> str:
    """Draw the tokens in the KV cache of a layer over the steps, below ``reuse_svg`` step by step."""
    records = list(trace.steps)
    starts, width = _starts(trace)
    most = max((record.kv_tokens for record in records), default=0) or 1
    places = [(starts[record.window] + record.step, 100 - 96 * record.kv_tokens / most) for record in records]
    area = "".join(f"M{x} 100V{y:.1f}h1V100z" for x, y in places)
    return _svg(width, 100, f'<path class="held" d="{area}"/>')


def _facts(run: Run, others: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    """Name, value and remark of each figure."""
    trace = run.trace
    seconds, actual = _denoising(trace), trace.flops.get("actual", 0.0)
    saved = ""
    for other in others:
        if run.state == other.state == "done" and (theirs := _denoising(other.trace)) > seconds:
            saved = f"{format_time(theirs - seconds)} saved, {theirs / seconds:.1f}x"
    yield "denoising", format_time(seconds), saved
    if actual:
        yield "computed", format_flops(actual), format_saving(actual, trace.flops.get("vanilla", 0.0))
    yield "reused", f"{trace.reuse_ratio:.0%}", "of chunk steps"
    if trace.windows:
        window = max(trace.windows, key=lambda window: window.kv_bytes)
        smaller = window.kv_bytes < window.kv_plain_bytes
        remark = f"{format_bytes(window.kv_plain_bytes)} uncompressed" if smaller else ""
        held = format_bytes(window.kv_bytes) if window.kv_bytes else "none"
        yield "KV cache", held, remark
    if tuning := trace.settings.get("tuning"):
        yield "target", tuning["target"], tuning["expected"].partition(": ")[2].partition(" (")[0]


def _notes(run: Run) -> Iterator[str]:
    settings = run.trace.settings
    for name, lost in settings.get("prompt_losses", {}).items():
        if not name.startswith("prompt"):
            continue
        if unknown := lost.get("unknown"):
            yield f"The model's text encoder does not know: {', '.join(unknown)}."
        if cut := lost.get("cut"):
            yield f"The prompt is too long; this is cut: {cut}"
    for second, prompt in list(settings.get("sent_prompts", [])):
        video = run.job.sampler.model.video
        is_shown = frame_at(second, video.fps) <= video.last_chunk_frame
        yield f"From {second:.1f} s: {prompt}." if is_shown else f"Not shown, as all chunks had begun: {prompt}."


def _denoising(trace: Trace) -> float:
    return sum(record.seconds for record in list(trace.steps))


def _steps(window: Any) -> int:
    return len(StaircaseSchedule(len(window.chunk_frames), window.num_steps, window.stride, window.first_chunk))


def _starts(trace: Trace) -> tuple[list[int], int]:
    """First step of each window on one axis, and the length of the axis."""
    ends = np.cumsum([0, *map(_steps, list(trace.windows))]).tolist()
    return ends[:-1], max(1, ends[-1])


def _bar(chunk: int, left: int, length: int) -> str:
    return f"M{left} {chunk * ROW}h{length}v{BAR}h-{length}z"


def _svg(width: int, height: int, content: str) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" shape-rendering="crispEdges">'
    return f"{head}{content}</svg>"
