"""The page: what a visitor can ask for, and what is shown of the runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..cli import MODELS, find_model
from ..command_line import LOCAL_HOSTS, describe_error
from .picture import describe_run
from .request import EXAMPLES, METHODS, TARGETS, Request, list_methods
from .studio import Run, Studio, change_prompt, takes_prompts

HERE = Path(__file__).parent

#: Fonts of the system: the page loads nothing from elsewhere.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], spacing_size="sm", text_size="sm"
)
ALONE = "nothing"
MAX_UPLOAD = "256mb"
#: Chunks' worth of tokens that the KV cache keeps; 0 is all.
BUDGETS = {0: "all", 1: "1 chunk", 2: "2 chunks", 4: "4 chunks"}


@contextmanager
def serve_page(checkpoints: str, folder: Path, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serve the page within a block, by default at a free port of this machine; yields its address."""
    studio = Studio()
    page = build_page(studio, checkpoints, folder)
    # A name that another site points at this machine would make the page part of that site.
    names = Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS) if host in LOCAL_HOSTS else ["*"])
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            app_kwargs={"middleware": [names]},
            allowed_paths=[str(folder)],
            max_file_size=MAX_UPLOAD,
            theme=THEME,
            css_paths=HERE / "page.css",
            footer_links=[],
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        yield address
    finally:
        page.close(verbose=False)
        studio.close()


def build_page(studio: Studio, checkpoints: str, folder: Path) -> gr.Blocks:
    """Make the page; ``checkpoints`` and ``folder`` are those of ``Request``."""
    model = next(iter(MODELS))
    with gr.Blocks(title="FlowCache", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        runs = gr.State([])
        with gr.Row(elem_id="main"):
            with gr.Column(scale=1, min_width=320, elem_id="form"):
                gr.HTML("<h1>FlowCache</h1>", apply_default_css=False)
                asked = _add_form(model, checkpoints)
                with gr.Row():
                    start = gr.Button("Run", variant="primary", min_width=80, elem_id="run")
                    stop = gr.Button("Stop", interactive=False, min_width=80, elem_id="stop")
                    again = gr.Button("Resume", interactive=False, min_width=80, elem_id="resume")
                change = gr.Button("Change prompt", interactive=False, elem_id="change")
                refused = gr.Markdown(elem_id="refused")
            with gr.Column(scale=3, min_width=320):
                stage = gr.HTML(
                    {"runs": []},
                    html_template=(HERE / "stage.html").read_text(),
                    css_template=(HERE / "stage.css").read_text(),
                    js_on_load=(HERE / "stage.js").read_text(),
                    elem_id="stage",
                    apply_default_css=False,
                )
        shown = [runs, stage, start, stop, again, change]

        def play(made: list[Run], *values: Any) -> Iterator[list[Any]]:
            yield from _follow(lambda: studio.play(_read_form(values, checkpoints, folder)), made)

        def resume(made: list[Run]) -> Iterator[list[Any]]:
            yield from _follow(lambda: studio.resume(made), made)

        alone = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        start.click(play, [runs, *asked], shown, api_name="run", **alone)
        again.click(resume, runs, shown, api_name="resume", **alone)
        quiet = {"queue": False, "show_progress": "hidden"}
        stop.click(_stop, runs, None, api_name="stop", **quiet)
        change.click(_change, [runs, asked[1]], refused, api_name="change_prompt", **quiet)
    return page


def _add_form(model: str, checkpoints: str) -> list[gr.components.Component]:
    """Add the inputs, in the order in which ``_read_form`` reads them."""
    titles = [(find_model(name).title, name) for name in MODELS]
    kind = gr.Dropdown(titles, value=model, label="Model", elem_id="model")
    prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=2, max_lines=6, elem_id="prompt")
    gr.Examples([[example] for example in EXAMPLES], prompt, label="Words that the small checkpoints know")
    method = gr.Dropdown(**_methods(model, checkpoints), label="Method", elem_id="method")
    last = gr.State("target_speedup")  # the target that the number belongs to
    target = gr.Number(
        TARGETS[last.value], label="Times fewer FLOPs, or dB to no reuse", minimum=0, visible=False, elem_id="target"
    )
    beside = gr.Dropdown(**_others(model, checkpoints), label="Compare with", elem_id="beside")
    with gr.Row():
        length = gr.Dropdown(**_lengths(model), label="Frames", min_width=80)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
        budget = gr.Dropdown([(name, n) for n, name in BUDGETS.items()], value=0, label="KV budget", min_width=100)
    with gr.Accordion("Start from an image, or continue a video", open=False):
        given = gr.File(file_types=["image", "video"], label="Image or video", height=90)

    def show_target(method: str, beside: str, last: str) -> tuple[gr.Number, str]:
        chosen = [name for name in TARGETS if name in (method, beside)]
        name = chosen[0] if len(chosen) == 1 else last
        suggested = {} if name == last else {"value": TARGETS[name]}  # a typed number stays
        return gr.Number(visible=bool(chosen), **suggested), name

    def change_model(name: str) -> tuple[gr.Dropdown, gr.Dropdown, gr.Dropdown]:
        choices = _methods(name, checkpoints), _others(name, checkpoints), _lengths(name)
        return tuple(gr.Dropdown(**each) for each in choices)

    quiet = {"queue": False, "show_progress": "hidden"}
    changes = [method.change, beside.change]
    gr.on(changes, show_target, [method, beside, last], [target, last], api_name="choose_method", **quiet)
    kind.input(change_model, kind, [method, beside, length], api_name="choose_model", **quiet)
    return [kind, prompt, method, beside, target, length, seed, budget, given]


def _read_form(values: Sequence[Any], checkpoints: str, folder: Path) -> list[Request]:
    model, prompt, method, beside, target, length, seed, budget, given = values
    if {method, beside} == TARGETS.keys():
        raise ValueError("compare with: expected one kind of target, got speed-up and PSNR; choose another method.")
    shared = {"model": model, "prompt": prompt, "target": target, "num_frames": length, "seed": seed}
    shared |= {"budget": budget or None, "given": Path(given) if given else None}
    shared |= {"checkpoints": checkpoints, "folder": folder}
    return [Request(method=name, **shared) for name in (method, beside) if name != ALONE]


def _follow(play: Callable[[], Iterator[list[Run]]], runs: list[Run]) -> Iterator[list[Any]]:
    """The runs, the stage and the four buttons, as they change; a refused request leaves the earlier ``runs``."""
    try:
        for runs in play():
            yield [runs, _show(runs), *_buttons(True, False, takes_prompts(runs))]
    except (ValueError, OSError) as error:
        refused = {"error": describe_error(error)}
    else:
        refused = {}
    yield [runs, _show(runs) | refused, *_buttons(False, any(run.state in ("stopped", "failed") for run in runs))]


def _show(runs: Sequence[Run]) -> dict[str, Any]:
    return {"runs": [describe_run(run, [other for other in runs if other is not run]) for run in runs]}


def _buttons(runs: bool, resumes: bool, changes: bool = False) -> list[gr.Button]:
    """Which of run, stop, resume and change prompt can be pressed."""
    return [gr.Button(interactive=each) for each in (not runs, runs, resumes, changes)]


def _stop(runs: Sequence[Run]) -> None:
    for run in runs:
        run.stop()


def _change(runs: Sequence[Run], prompt: str) -> str:
    """Change the prompt; returns why it cannot be, or nothing."""
    try:
        change_prompt(runs, prompt)
    except ValueError as error:
        return describe_error(error)
    return ""


def _methods(model: str, checkpoints: str) -> dict[str, Any]:
    names = list_methods(model, checkpoints)
    default = "flowcache:fast" if "flowcache:fast" in names else names[0]
    return {"choices": [(METHODS[name], name) for name in names], "value": default}


def _others(model: str, checkpoints: str) -> dict[str, Any]:
    return {"choices": [ALONE, *_methods(model, checkpoints)["choices"]], "value": ALONE}


def _lengths(model: str) -> dict[str, Any]:
    lengths = list(find_model(model).lengths)
    return {"choices": lengths, "value": lengths[1]}
