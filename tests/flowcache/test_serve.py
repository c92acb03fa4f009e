"""The server of videos: its answers, and that no video is lost or made twice when it is killed."""

import logging
import time
from io import BytesIO

import pytest
from PIL import Image

from flowcache.cli import find_model
from flowcache.serve.queue import VideoQueue
from flowcache.serve.worker import Worker
from research.serving import OPTIONS, PROMPT, Server, count_frames

for module in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(module, reason="the server needs the extra serve")


def form(image: bytes) -> dict[str, str | bytes]:
    """A request as a form, and its type."""
    part = 'Content-Disposition: form-data; name="{}"'
    fields = f"--x\r\n{part.format('prompt')}\r\n\r\n{PROMPT}\r\n--x\r\n{part.format('input_reference')}"
    content = f'{fields}; filename="../../a.png"\r\n\r\n'.encode() + image + b"\r\n--x--\r\n"
    return {"content": content, "kind": "multipart/form-data; boundary=x"}


def test_killed_server_loses_nothing_and_makes_no_video_twice(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    image, folder, options = BytesIO(), tmp_path / "videos", f"{OPTIONS} --num_frames 17"
    Image.new("RGB", (64, 64), "navy").save(image, "PNG")
    with Server(tmp_path, f"{options} --max_queue 4") as server:
        made = [server.call("POST", content={"prompt": PROMPT, "seconds": 1.5, "seed": s}) for s in (7, 8)]
        made += [server.call("POST", **form(image.getvalue())), server.call("POST", content={"prompt": PROMPT})]
        assert [status for status, _ in made] == [200] * 4
        first, second, third, fourth = [video["id"] for _, video in made]
        assert server.call("POST", content={"prompt": PROMPT})[0] == 429
        check_refusals(server)
        assert server.call("DELETE", f"/{fourth}")[1]["deleted"] and server.call("GET", f"/{fourth}")[0] == 404
        server.wait(lambda: server.call("GET", f"/{first}")[1]["progress"])
        assert count_frames(server.call("GET", f"/{first}/content")[1]) == 37  # as it grows
        server.wait((folder / second / "video.resume.pt").exists)
        server.kill()
    written = (folder / first / "video.mp4").stat()
    queue = VideoQueue(folder / "videos.sqlite")
    assert [video.status for video in queue.list(9)] == ["queued", "in_progress", "completed"]
    worker = Worker(find_model("skyreels_v2"), options.split(), queue, folder)
    worker.start()
    while queue.get(third).status != "completed":
        time.sleep(0.1)
    worker.stop()
    frames = [count_frames((folder / id / "video.mp4").read_bytes()) for id in (first, second, third)]
    assert frames == [37, 37, 17]
    assert (folder / first / "video.mp4").stat().st_mtime_ns == written.st_mtime_ns
    assert "resuming after" in caplog.text
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {first, second, third}


def check_refusals(server: Server) -> None:
    """Bad input is an error of OpenAI's form, which names the parameter."""
    for status, param, changes in [
        (400, "prompt", {"prompt": ""}),
        (400, "seconds", {"seconds": 1000}),
        (400, "size", {"size": "large"}),
        (400, None, {"size": "65x64"}),
        (404, "model", {"model": "other"}),
        (400, "style", {"style": 1}),
    ]:
        got, answer = server.call("POST", content={"prompt": PROMPT, **changes})
        assert (got, answer["error"]["param"]) == (status, param), answer
        assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"].endswith(".")
    assert "input_reference" in server.call("POST", **form(b"no image"))[1]["error"]["message"]
    assert server.call("GET", "/..%2Fvideos.sqlite/content")[0] == 404
    assert server.call("GET", Origin="http://example.com")[0] == 403
    assert server.call("GET", Host="example.com")[0] == 400
    chunked = {"Content-Length": "9", "Transfer-Encoding": "chunked"}  # of which the first is not checked
    assert server.call("POST", content={"prompt": PROMPT}, **chunked)[0] in (400, 411)
