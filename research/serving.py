"""Load-test ``flowcache serve``: many videos at once, and a server that is killed while it makes them.

    python -m research.serving --videos 50 --kills 2

Starts a server of the small SkyReels-V2 on a free port of this machine, asks for all videos from eight threads, kills
it without warning, starts it again with the same folder, and checks that every video is whole and was written once.
"""

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import av
from tqdm import tqdm

logger = logging.getLogger(__name__)

PROMPT = "a red circle moves right over a dark background"
OPTIONS = "--weights small --ar_step 5 --inference_steps 5 --base_num_frames 37 --overlap_history 17"
SECONDS = (0.7, 1.5)  # lengths, in turn: 17 and 37 frames
WAIT = 600  # seconds


class Server:
    """A server in a process of its own; a context manager, which kills it at the end."""

    def __init__(self, folder: Path, options: str = OPTIONS) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / f"{self.port}.log"
        command = [sys.executable, "-m", "flowcache", "serve", "--model", "skyreels_v2", *options.split()]
        command += ["--folder", str(folder / "videos"), "--port", str(self.port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        self.wait(lambda: self.call("GET"))
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def call(
        self, verb: str, path: str = "", content: Any = None, kind: str = "application/json", **headers: str
    ) -> tuple[int, Any]:
        """Status and content of an answer: bytes of a video, or what is in the JSON."""
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        url = f"http://127.0.0.1:{self.port}/v1/videos{path}"
        request = urllib.request.Request(url, content, {"Content-Type": kind, **headers}, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                status, kind, body = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            status, kind, body = error.code, error.headers["Content-Type"], error.read()
        return status, json.loads(body) if kind == "application/json" else body

    def wait(self, holds: Callable[[], Any]) -> None:
        """Wait until a condition holds; raises TimeoutError, or RuntimeError if the server has ended."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log.read_text()}")
            try:
                if holds():
                    return
            except urllib.error.URLError:  # it does not listen yet
                pass
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text())

    def list_videos(self) -> list[dict[str, Any]]:
        return self.call("GET", "?order=asc&limit=100")[1]["data"]


def count_frames(content: bytes) -> int:
    with av.open(BytesIO(content)) as container:
        return sum(1 for _ in container.decode(video=0))


def count_completed(server: Server) -> int:
    return sum(video["status"] == "completed" for video in server.list_videos())


def run(count: int, kills: int, folder: Path) -> str:
    """Run the test; returns what it found."""
    began, written, wanted = time.monotonic(), {}, []
    for start in range(kills + 1):
        with Server(folder, f"{OPTIONS} --max_queue {count}") as server, tqdm(total=count, unit="video") as bar:

            def ask(place: int, server: Server = server) -> tuple[str, float]:
                asked = {"prompt": PROMPT, "seconds": SECONDS[place % len(SECONDS)], "seed": place}
                status, video = server.call("POST", content=asked)
                if status != 200:
                    raise RuntimeError(f"{status}: {video}")
                return video["id"], float(video["seconds"])

            if start == 0:
                with ThreadPoolExecutor(8) as pool:
                    wanted = list(pool.map(ask, range(count)))
                full = server.call("POST", content={"prompt": PROMPT})[0]
            goal = count if start == kills else count * (start + 1) // (kills + 1)

            def is_reached(server: Server = server, bar: tqdm = bar, goal: int = goal) -> bool:
                bar.update(count_completed(server) - bar.n)
                return bar.n >= goal

            server.wait(is_reached)
            if start < kills:
                server.wait(lambda: any(folder.glob("videos/*/video.resume.pt")))
                server.kill()
            else:
                frames = [count_frames(server.call("GET", f"/{id}/content")[1]) for id, _ in wanted]
                completed = count_completed(server)
        for path in folder.glob("videos/*/video.mp4"):
            written.setdefault(path, set()).add((path.stat().st_ino, path.stat().st_mtime_ns))
    whole = sum(got == round(seconds * 24) for got, (_, seconds) in zip(frames, wanted, strict=True))
    again = sum(len(times) > 1 for times in written.values())
    resumed = sum(log.read_text().count("resuming after") for log in folder.glob("*.log"))
    return (
        f"{count} videos asked for, {completed} completed, {whole} with all frames, {again} written again; "
        f"{kills} kills, {resumed} videos resumed; one more than the queue takes: {full}; "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=50, help="videos, at most 100 (default: 50)")
    parser.add_argument("--kills", type=int, default=2, help="times that the server is killed (default: 2)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        logger.info(run(given.videos, given.kills, Path(place)))
