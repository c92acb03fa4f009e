"""Serve a model over HTTP by OpenAI's interface of videos; one video is made at a time.

    flowcache serve --model skyreels_v2 --weights small --ar_step 5 --overlap_history 17
    FLOWCACHE_API_KEY=... flowcache serve --model magi1 --host 0.0.0.0

Further options are those of ``flowcache generate``, for all videos. The queue is on disk: a server that starts again
with the same folder and options resumes the video that was in progress, and makes those that wait.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from ..cli import MODELS, find_model, read_options
from ..command_line import LOCAL_HOSTS, Parser, check_address, writable_folder
from ..environment import require
from ..options import DEFAULTS
from ..registry import MAX_PIXELS, check_number
from ..running import run_checked
from ..typed import field_types
from ..video_options import VideoOptions
from .queue import VideoQueue
from .worker import Worker

logger = logging.getLogger(__name__)

KEY = "FLOWCACHE_API_KEY"
#: Options of ``flowcache generate`` that belong to a request, or to the server.
REQUESTED = set(field_types(VideoOptions)) - {"device"} | {"seed"}


def build_parser() -> Parser:
    parser = Parser(__doc__, prog="flowcache serve", usage="%(prog)s --model MODEL [options]")
    add = parser.add_argument
    add("--model", choices=MODELS, required=True, help="model of all videos")
    add("--host", default="127.0.0.1", help=f"address to listen on; another needs {KEY} (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    add("--folder", type=Path, default=Path("outputs/serve"), help="videos and queue (default: outputs/serve)")
    add("--max_queue", type=int, default=100, help="videos that may wait (default: 100)")
    add("--max_seconds", type=float, default=20, help="longest video in seconds (default: 20)")
    add("--max_pixels", type=int, default=1920 * 1088, help="pixels of the largest frame (default: 2088960)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    options, rest = build_parser().parse_known_args(words)

    def prepare() -> Callable[[], str]:
        for name, number, most in (("port", options.port, 65535), ("max_queue", options.max_queue, 10**6)):
            check_number(name, number, 1, most)
        check_number("max_pixels", options.max_pixels, 1, MAX_PIXELS)
        check_number("max_seconds", options.max_seconds, 0.01, 10**5)
        check_address(options.host, options.port)
        key = os.environ.get(KEY, "").strip() or None
        if key and not (key.isascii() and key.isprintable()):
            raise ValueError(f"{KEY}: expected printable ASCII, as no other is sent in a header; choose another key.")
        if options.host not in LOCAL_HOSTS and key is None:
            raise ValueError(f"host: expected {KEY} in the environment beside {options.host}; set it.")
        for module in ("fastapi", "uvicorn", "python_multipart"):
            require(module, "flowcache serve", "serve")
        model = find_model(options.model)
        if DEFAULTS in rest:
            raise ValueError(f"{DEFAULTS}: expected only in scripts; leave it out.")
        for name in read_options(model, "generate", rest).typed & REQUESTED:
            raise ValueError(f"{name}: expected none for all videos, as each has its own; leave it out.")
        folder = writable_folder("folder", options.folder).resolve()
        lock = FileLock(folder / "serve.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(f"folder: expected one that no other server uses, got {folder}.") from None
        queue = VideoQueue(folder / "videos.sqlite")
        worker = Worker(model, rest, queue, folder)
        chosen = worker.prepare("--dry_run").sampler.model
        longest = chosen.fit_frames(max(1, round(options.max_seconds * chosen.video.fps)), False)
        try:
            worker.prepare("--dry_run", f"--num_frames={longest}")
        except ValueError as error:
            logger.warning("Not all videos up to --max_seconds %g can be made: %s", options.max_seconds, error)

        def serve() -> str:
            import uvicorn  # optional, as the application's packages are

            from .app import Service, make_app

            service = Service(chosen, worker, queue, options.max_queue, options.max_seconds, options.max_pixels)
            hosts = ["*"] if key else list(LOCAL_HOSTS)
            logger.info("http://%s:%d/v1/videos; Ctrl-C ends the server", options.host, options.port)
            place = {"host": options.host, "port": options.port}
            with lock, closing(queue):
                uvicorn.run(make_app(service, hosts, key), **place, log_config=None, timeout_graceful_shutdown=3)
            return f"the queue is in {folder}"

        return serve

    return run_checked(prepare, lambda serve: serve())


if __name__ == "__main__":
    sys.exit(main())
