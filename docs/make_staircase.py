"""Write docs/staircase.svg, an animation of the schedule and policy of a preset:  python docs/make_staircase.py"""

from itertools import groupby
from pathlib import Path

from flowcache.methods import INTERVAL_SCALE
from flowcache.reuse import Interval
from flowcache.schedule import StaircaseSchedule

LEFT, TOP, CELL, ROW, GAP = 78, 52, 10, 34, 6
COLOURS = {"computed": "#2f74b8", "reused": "#e0801f", "clean": "#9aa0a6"}  # on white and on black
LEGEND = {"computed": "the model runs", "reused": "extrapolated", "clean": "clean: its keys and values stay"}

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #80868b }
.seen { animation: seen 12s steps(%d) infinite; transform-origin: %dpx }
@keyframes seen { 0%% { transform: scaleX(0) } 80%%, 100%% { transform: none } }
@media (prefers-reduced-motion: reduce) { .seen { animation: none } }
"""


def make_staircase(preset: str = "fast", num_chunks: int = 5, num_steps: int = 50, stride: int = 5) -> str:
    """The picture: a row for each chunk, a column for each step; steps appear one by one, again and again."""
    schedule, policy = StaircaseSchedule(num_chunks, num_steps, stride), Interval(scale=INTERVAL_SCALE[preset])
    policy.begin(num_steps, (), None)
    rows = [["waiting"] * len(schedule) for _ in range(num_chunks)]
    for step, live in enumerate(schedule):
        decisions = policy.decide(step, len(schedule), live, {})
        for chunk, row in enumerate(rows):
            if chunk in live:
                row[step] = "reused" if decisions[chunk].reuse else "computed"
            elif schedule.local_step(chunk, step) >= num_steps:
                row[step] = "clean"
    width, bottom = len(schedule) * CELL, TOP + num_chunks * ROW
    runs = sum("computed" in column for column in zip(*rows, strict=True))
    title = f"{preset}: {num_chunks} chunks of {num_steps} steps; the model runs at {runs} of {len(schedule)} steps"
    size = f'viewBox="0 0 {LEFT + width + 12} {bottom + 62}"'
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<title>{title}</title>"]
    drawn.append(f"<style>{STYLE % (len(schedule), LEFT)}</style>")
    drawn.append(f'<clipPath id="seen"><rect class="seen" x="{LEFT}" width="{width}" height="{bottom}"/></clipPath>')
    drawn.append(_text(LEFT, 20, title))
    drawn += [_text(4, TOP + chunk * ROW + 18, f"chunk {chunk}") for chunk in range(num_chunks)]
    drawn += [_text(LEFT + step * CELL, TOP - 8, str(step)) for step in range(0, len(schedule), 10)]
    bars = [bar for chunk, row in enumerate(rows) for bar in _bars(chunk, row)]
    drawn += ['<g clip-path="url(#seen)">', *bars, "</g>"]
    for index, (kind, meaning) in enumerate(LEGEND.items()):
        drawn.append(_bar(kind, LEFT + 160 * index, bottom + 24, 14, 14))
        drawn.append(_text(LEFT + 160 * index + 22, bottom + 36, meaning))
    return "\n".join([*drawn, "</svg>", ""])


def _bars(chunk: int, row: list[str]) -> list[str]:
    """Steps of one chunk: bars of their own for live ones, a thin line while it is clean."""
    drawn, step = [], 0
    for kind, group in groupby(row):
        count = len(list(group))
        x, y = LEFT + step * CELL, TOP + chunk * ROW
        if kind == "clean":
            drawn.append(_bar(kind, x, y + (ROW - GAP) // 2 - 1, count * CELL, 3))
        elif kind != "waiting":
            drawn += [_bar(kind, x + index * CELL, y, CELL - 1, ROW - GAP) for index in range(count)]
        step += count
    return drawn


def _bar(kind: str, x: int, y: int, width: int, height: int) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{COLOURS[kind]}"/>'


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}">{text}</text>'


if __name__ == "__main__":
    Path(__file__).with_name("staircase.svg").write_text(make_staircase(), encoding="utf-8")
