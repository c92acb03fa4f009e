"""The web page: the runs behind it, its endpoints, and the page itself in a browser where there is one."""

import shutil
from urllib import request as web
from urllib.error import HTTPError

import pytest
from PIL import Image
from synthetic_run import make_trace

from flowcache.demo.__main__ import build_parser
from flowcache.demo.picture import describe_run, reuse_svg
from flowcache.demo.request import Request
from flowcache.demo.studio import Run, Studio, change_prompt
from flowcache.trace import Trace

PROMPT = "a red circle moves right over a dark background"
BLUE = "a blue circle moves right over a dark background"
SMALL = {"model": "self_forcing", "prompt": PROMPT, "method": "flowcache:fast", "checkpoints": "small"}


def pictures(run):
    return [strip["picture"] for part in run.parts for strip in part.strips]


@pytest.fixture(scope="module")
def studio():
    made = Studio()
    yield made
    made.close()


def test_a_stopped_run_resumes_to_the_same_frames(studio, tmp_path):
    request = Request(**SMALL, num_frames=45, folder=tmp_path / "demo")
    for (run,) in studio.play([request]):
        if run.parts:
            run.stop()
    assert run.state == "stopped"
    kept = len(run.parts)
    assert 0 < kept < 4
    *_, (run,) = studio.resume([run])
    assert run.state == "done" and sum(part.count for part in run.parts) == 45
    ready = [strip["ready"] for part in run.parts for strip in part.strips]
    assert ready == sorted(ready) and len(run.trace.steps) == 4 * 4
    *_, (whole,) = studio.play([request])
    assert pictures(run) == pictures(whole)
    shown = describe_run(run)
    assert shown["frames"] == [45, 45] and sum(strip["count"] for strip in shown["strips"]) == 45
    assert {name for name, _ in shown["files"]} == {"video", "trace", "reuse map", "enlarged"}
    assert all((tmp_path / "demo" / path).is_file() for _, path in shown["files"])


def test_equal_requests_have_files_of_their_own(studio, tmp_path):
    request = Request(**SMALL, num_frames=45, folder=tmp_path / "demo")
    runs = []
    for least in (2, 1):
        for (run,) in studio.play([request]):
            if len(run.parts) >= least:
                run.stop()
        assert run.state == "stopped"
        runs.append(run)
    *_, (run,) = studio.resume(runs[:1])
    assert run.state == "done" and sum(part.count for part in run.parts) == 45
    assert len({each.job.output for each in runs}) == 2 and run.job.output.is_file()


def test_a_stop_ends_the_search_for_a_target(studio, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    target = {"method": "target_speedup", "target": 1.5, "num_frames": 48, "model": "magi1"}
    for (run,) in studio.play([Request(**{**SMALL, **target}, folder=tmp_path / "demo")]):
        if describe_run(run)["state"] == "trying intervals on a short video":
            run.stop()
    assert run.state == "stopped" and not run.trace.steps and "tuning" not in run.trace.settings


def test_a_stop_between_two_videos_stops_the_second(studio, tmp_path):
    requests = [Request(**SMALL, num_frames=45, seed=seed, folder=tmp_path / "demo") for seed in (0, 1)]
    for runs in studio.play(requests):
        if runs[0].state == "done" and runs[1].state == "waiting":
            runs[1].stop()
    assert [run.state for run in runs] == ["done", "stopped"]
    *_, runs = studio.resume(runs)
    assert [run.state for run in runs] == ["done", "done"]


@pytest.mark.parametrize(("model", "frames"), [("self_forcing", 81), ("magi1", 96), ("skyreels_v2", 97)])
def test_a_changed_prompt_survives_a_stop(studio, tmp_path, model, frames):
    request = Request(**{**SMALL, "model": model}, num_frames=frames, folder=tmp_path / "demo")
    for (run,) in studio.resume([Run(request, {3: BLUE})]):
        if run.parts:
            run.stop()
    assert run.state == "stopped"
    *_, (run,) = studio.resume([run])
    ((second, sent),) = run.trace.settings["sent_prompts"]
    assert run.state == "done" and sent == BLUE and second > 0
    assert describe_run(run)["notes"] == [f"From {second:.1f} s: {BLUE}."]
    *_, (whole,) = studio.resume([Run(request, run.changes)])
    assert pictures(run) == pictures(whole)


def test_a_prompt_replaces_those_that_an_earlier_try_sent_later(studio, tmp_path):
    run = Run(Request(**SMALL, num_frames=45, folder=tmp_path / "demo"), {2: PROMPT})
    run.change_prompt(BLUE)
    *_, (run,) = studio.resume([run])
    assert (run.state, run.changes) == ("done", {1: BLUE})


def test_compared_runs_change_their_prompt_at_the_same_second(studio, tmp_path):
    shared = {**SMALL, "model": "skyreels_v2", "num_frames": 49, "folder": tmp_path / "demo"}
    for runs in studio.play([Request(**{**shared, "method": method}) for method in ("flowcache:fast", "vanilla")]):
        if runs[0].job is None:  # behind its first step, when the first block has begun
            change_prompt(runs, BLUE)
            with pytest.raises(ValueError, match="prompt: expected text"):
                change_prompt(runs, " ")
        if runs[1].state == "computing":
            with pytest.raises(ValueError, match="first of the two videos is finished"):
                change_prompt(runs, PROMPT)
    first, second = (run.trace.settings["sent_prompts"] for run in runs)
    assert first == second == [[17 / 24, BLUE]]
    for ended in (runs, []):
        with pytest.raises(ValueError, match="no video is running"):
            change_prompt(ended, BLUE)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("gradio", reason="the web page needs the extra demo")
    from flowcache.demo.page import serve_page

    with serve_page("small", tmp_path_factory.mktemp("outputs") / "demo") as address:
        yield address


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "sora"}, "model"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "\ud800"}, "text"),
        ({"method": "causal"}, "method"),
        ({"method": "target_psnr"}, "PSNR"),
        ({"num_frames": 80}, "length"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"given": "notes.png"}, "image"),
        ({"given": "notes.mkv"}, "video"),
    ],
)
def test_bad_requests_are_one_sentence(studio, tmp_path, changed, named):
    if "given" in changed:
        (tmp_path / changed["given"]).write_text("neither")
        changed = {"given": tmp_path / changed["given"]}
    with pytest.raises(ValueError, match=named) as failure:
        next(studio.play([Request(**{**SMALL, **changed}, folder=tmp_path / "demo")]))
    assert "\n" not in str(failure.value) and str(tmp_path) not in str(failure.value)
    assert not any(f"{option}: " in str(failure.value) for option in ("video_path", "target_psnr"))
    assert not list((tmp_path / "demo").glob("*"))


def test_reuse_map_has_every_chunk_of_every_step():
    trace = make_trace("flowcache:paper-fast")
    drawn = reuse_svg(trace)
    events = [event for step in trace.steps for event in step.events]
    for kind, reused in (("computed", False), ("reused", True)):
        (path,) = [part for part in drawn.split("<path ") if f'class="{kind}"' in part]
        assert path.count("M") == sum(event.reused == reused for event in events)
    assert reuse_svg(Trace()).startswith("<svg")


def test_endpoints_run_compare_and_refuse(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    client.predict("self_forcing", api_name="/choose_model")
    form = ["self_forcing", PROMPT, "flowcache", "vanilla", 3, 45, 0, 2, None]
    job = client.submit(*form, api_name="/run")
    *_, last = job
    assert [(run["state"], run["frames"]) for run in last["runs"]] == [("done", [45, 45])] * 2
    assert len(job.outputs()) > 4, "updates while it runs"
    for path, served in ((last["runs"][0]["files"][0][1], 200), (__file__, 403)):
        assert _status(f"{address}gradio_api/file={path}") == served
    assert _status(address, Host="example.com") == 400
    form[1] = " "
    *_, last = client.submit(*form, api_name="/run")
    assert last["error"].startswith("prompt: ") and [run["state"] for run in last["runs"]] == ["done"] * 2


def test_endpoint_takes_an_image(address, tmp_path):
    from gradio_client import Client, handle_file

    Image.new("RGB", (64, 64), "navy").save(tmp_path / "first.png")
    client = Client(address, verbose=False)
    client.predict("self_forcing", api_name="/choose_model")
    given = handle_file(tmp_path / "first.png")
    *_, last = client.submit("self_forcing", PROMPT, "flowcache", "nothing", 3, 45, 0, 0, given, api_name="/run")
    (run,) = last["runs"]
    assert run["state"] == "done" and "i2v" in run["files"][0][1]


def test_a_few_step_model_has_no_presets_or_targets(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    method, beside, _ = client.predict("self_forcing", api_name="/choose_model")
    assert [name for _, name in method["choices"]] == ["flowcache", "vanilla"] and method["value"] == "flowcache"
    assert [name for _, name in beside["choices"]] == ["nothing", "flowcache", "vanilla"]
    method, *_ = client.predict("magi1", api_name="/choose_model")
    names = {name for _, name in method["choices"]}
    assert method["value"] == "flowcache:fast" and names > {"target_speedup", "target_psnr", "teacache"}
    assert "flowcache" not in names


def test_each_target_suggests_its_own_number(address):
    from gradio_client import Client

    client = Client(address, verbose=False)

    def choose(*methods):
        shown = client.predict(*methods, api_name="/choose_method")
        return shown["visible"], shown.get("value")

    assert choose("flowcache:fast", "vanilla") == (False, None)
    assert choose("target_psnr", "nothing") == (True, 35)
    assert choose("target_psnr", "vanilla") == (True, None), "a typed number stays"
    assert choose("target_psnr", "target_speedup") == (True, None)
    assert choose("flowcache:fast", "target_speedup") == (True, 3)
    form = ["skyreels_v2", PROMPT, "target_psnr", "target_speedup", 3, 49, 0, 0, None]
    *_, last = client.submit(*form, api_name="/run")
    assert last["error"].startswith("compare with: ") and not last["runs"]


def test_model_is_an_alias_of_weights():
    parser = build_parser()
    assert [parser.parse_args([flag, "small"]).weights for flag in ("--weights", "--model")] == ["small"] * 2


def test_page_in_a_browser(address, tmp_path):
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium was found")
    foreign = []
    with browsers.sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]).new_page()
        page.on("request", lambda request: None if _is_local(request.url, address) else foreign.append(request.url))
        page.on("pageerror", lambda error: foreign.append(str(error)))
        page.goto(address)
        page.fill("#prompt textarea", "")
        page.click("#run")
        page.wait_for_selector("[role=alert]")
        assert page.inner_text("[role=alert]").startswith("prompt: ")
        page.fill("#prompt textarea", PROMPT)
        page.click("#run")
        page.wait_for_selector("#stage .reused", state="attached", timeout=120_000)
        page.fill("#prompt textarea", BLUE)
        page.click("#change")
        page.wait_for_function(f"document.querySelector('.notes').textContent.includes({BLUE!r})")
        page.click("#stop")
        page.wait_for_selector("[data-state=stopped]", timeout=60_000)
        page.fill("#prompt textarea", "")
        page.click("#run")
        page.wait_for_selector("[role=alert]")
        page.click("#resume")  # a refused request leaves the stopped run
        page.wait_for_selector("[data-state=done]", timeout=120_000)
        page.wait_for_function(f"{_PIXELS} > 0")
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.screenshot(path=tmp_path / "narrow.png", full_page=True)
    assert not foreign


def _status(url: str, **headers: str) -> int:
    try:
        return web.urlopen(web.Request(url, headers=headers)).status
    except HTTPError as error:
        return error.code


_PIXELS = "document.querySelector('canvas').getContext('2d').getImageData(0, 0, 9, 9).data.filter(Boolean).length"


def _is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))
