"""The server of videos: its answers, and that no video is lost or made twice when it is killed."""

import asyncio
import errno
import logging
import time
from io import BytesIO
from threading import Event, Thread, current_thread

import pytest
from PIL import Image

from flowcache.cli import find_model
from flowcache.serve.queue import Video, VideoQueue
from flowcache.serve.worker import MAX_ATTEMPTS, Cancelled, Worker
from research.serving import OPTIONS, PROMPT, Server, count_frames

for module in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(module, reason="the server needs the extra serve")

from flowcache.serve.app import Service  # noqa: E402


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
        assert count_frames(server.call("GET", f"/{first}/content")[1]) == 37
        (folder / first / "video.mp4").rename(tmp_path / "video.mp4")
        assert server.call("GET", f"/{first}/content")[0] == 410
        (tmp_path / "video.mp4").rename(folder / first / "video.mp4")
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


@pytest.fixture
def queue(tmp_path):
    queue = VideoQueue(tmp_path / "videos.sqlite")
    for id in ("first", "second"):
        queue.add(Video(id=id, prompt=PROMPT, words=(), seconds=1, size="64x64"), most=9)
    yield queue
    queue.close()


class FakeWorker(Worker):
    """A worker whose first video ends with an exception, by default that of a stop, and whose others are whole."""

    def __init__(self, queue, folder, error=None):
        super().__init__(find_model("skyreels_v2"), [], queue, folder)
        self.error, self.began = error, Event()

    def _make(self, video):
        self.began.set()
        if video.id == "first":
            if self.error is None:
                self._stopping.wait(60)
            raise self.error or Cancelled


def wait_for(condition):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 60
        time.sleep(0.02)


def test_a_video_that_kills_the_server_fails(tmp_path, queue):
    for _ in range(MAX_ATTEMPTS + 2):  # clean stops do not count
        made = FakeWorker(queue, tmp_path)
        made.start()
        wait_for(made.began.is_set)
        made.stop()
    assert queue.get("first").status == "in_progress" and queue.get("first").attempts == 0
    for attempt in range(MAX_ATTEMPTS):
        assert (queue.claim().id, queue.get("first").attempts) == ("first", attempt + 1)  # and the process is killed
    queue.remove("second")
    made = Worker(find_model("skyreels_v2"), [], queue, tmp_path)
    made.start()
    wait_for(lambda: queue.get("first").status == "failed")
    made.stop()
    first = queue.get("first")
    assert first.status == "failed" and f"killed {MAX_ATTEMPTS} times" in first.error


def test_a_video_of_other_options_fails_and_the_worker_lives(tmp_path, queue):
    queue.add(Video(id="third", prompt=PROMPT, words=("--video_size_h=64",), seconds=1, size="64x64"), most=9)
    made = FakeWorker(queue, tmp_path)
    made._make = lambda video: Worker._make(made, video) if video.id == "third" else None
    made.start()
    wait_for(lambda: queue.get("third").status == "failed")
    made.stop()
    assert "options" in queue.get("third").error and queue.get("second").status == "completed"


def test_a_stop_while_the_worker_falls_asleep_ends_it(tmp_path, queue, monkeypatch):
    for id in ("first", "second"):
        queue.remove(id)
    made = FakeWorker(queue, tmp_path)
    clear = made._wake.clear
    monkeypatch.setattr(made._wake, "clear", lambda: (time.sleep(0.3), clear()))
    made.start()
    time.sleep(0.1)
    stopper = Thread(target=made.stop, daemon=True)
    stopper.start()
    stopper.join(10)
    assert not stopper.is_alive()


@pytest.mark.parametrize("status", ["removed", "failed", "completed"])
def test_a_growing_file_ends_as_its_video_does(tmp_path, queue, status):
    queue.claim()
    (tmp_path / "first.mp4").write_bytes(b"frames")
    if status == "removed":
        queue.remove("first")
    else:
        queue.finish("first", "no room" if status == "failed" else None)
    service = Service(None, None, queue, 1, 1, 1)

    async def read():
        return [content async for content in service.follow((tmp_path / "first.mp4").open("rb"), "first")]

    if status == "completed":
        assert asyncio.run(read()) == [b"frames"]
    else:
        with pytest.raises(RuntimeError, match="not finished"):
            asyncio.run(read())


def test_a_queue_of_an_earlier_version_is_read(tmp_path, queue):
    queue._execute("ALTER TABLE videos DROP COLUMN attempts")
    again = VideoQueue(tmp_path / "videos.sqlite")
    assert again.claim().attempts == 1
    again.close()


def test_a_damaged_queue_is_named(tmp_path):
    path = tmp_path / "videos.sqlite"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(OSError, match="not a database"):
        VideoQueue(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="unable to open"):
        VideoQueue(path)


@pytest.mark.parametrize("is_queue_full", [False, True])
def test_a_full_disk_fails_the_video_and_not_the_worker(tmp_path, queue, caplog, monkeypatch, is_queue_full):
    monkeypatch.setattr("flowcache.serve.worker.RETRY", 0.1)
    made = FakeWorker(queue, tmp_path, OSError(errno.ENOSPC, "No space left on device", "video.part.mp4"))
    finish, refused = queue.finish, []

    def finish_later(id, error=None):
        """Refuse twice, by the words of SQLite."""
        if is_queue_full and len(refused) < 2:
            refused.append(id)
            queue._execute("PRAGMA max_page_count = 1")
            queue.add(Video(id=f"large{len(refused)}", prompt="x" * 10**6, words=(), seconds=1, size="64x64"), most=9)
        queue._execute("PRAGMA max_page_count = 100000")
        return finish(id, error)

    monkeypatch.setattr(queue, "finish", finish_later)
    made.start()
    wait_for(lambda: queue.get("second").status == "completed")
    made.stop()
    assert queue.get("first").status == "failed" and "No space left on device" in queue.get("first").error
    again = [record.message for record in caplog.records if "tries again" in record.message]
    assert len(again) == 2 * is_queue_full and all("database or disk is full" in each for each in again)


def test_a_queue_that_cannot_be_read_for_a_moment_does_not_end_the_worker(tmp_path, queue, monkeypatch):
    monkeypatch.setattr("flowcache.serve.worker.RETRY", 0.1)
    made, get, refused = FakeWorker(queue, tmp_path, ValueError("prompt: expected text")), queue.get, []

    def get_later(id):
        if current_thread() is made._thread and not refused:
            refused.append(id)
            raise OSError("unable to open database file")
        return get(id)

    monkeypatch.setattr(queue, "get", get_later)
    made.start()
    wait_for(lambda: get("second").status == "completed")
    made.stop()
    assert refused == ["first"] and get("first").status == "failed"


def check_refusals(server: Server) -> None:
    """Bad input is an error of OpenAI's form, which names the parameter."""
    for status, param, changes in [
        (400, "prompt", {"prompt": ""}),
        (400, "seconds", {"seconds": 1000}),
        (400, "size", {"size": "large"}),
        (400, "size", {"size": "65x64"}),
        (400, "size", {"size": "16000x16000"}),
        (404, "model", {"model": "other"}),
        (400, "style", {"style": 1}),
    ]:
        got, answer = server.call("POST", content={"prompt": PROMPT, **changes})
        assert (got, answer["error"]["param"]) == (status, param), answer
        assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"].endswith(".")
    large = BytesIO()
    Image.new("1", (8000, 8000)).save(large, "PNG")  # a few bytes
    for image, word in ((b"no image", "image"), (large.getvalue(), "pixels")):
        got, answer = server.call("POST", **form(image))
        assert (got, answer["error"]["param"]) == (400, "input_reference") and word in answer["error"]["message"]
    assert server.call("GET", "/..%2Fvideos.sqlite/content")[0] == 404
    assert server.call("GET", Origin="http://example.com")[0] == 403
    assert server.call("GET", Host="example.com")[0] == 400
    chunked = {"Content-Length": "9", "Transfer-Encoding": "chunked"}  # of which the first is not checked
    assert server.call("POST", content={"prompt": PROMPT}, **chunked)[0] in (400, 411)
