"""Serve a web page on which the models can be tried.

    flowcache demo
    flowcache demo --weights small --port 8000

Only this machine can open the page, unless --host names another address. One video is made at a time.
"""

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..command_line import Parser, check_address, writable_folder
from ..environment import require
from ..registry import check_number
from ..running import run_checked

logger = logging.getLogger(__name__)


def build_parser() -> Parser:
    parser = Parser(__doc__, prog="flowcache demo")
    add = parser.add_argument
    weights = "checkpoints: small, or auto, the official ones on CUDA and the small ones otherwise (default: auto)"
    add("--weights", "--model", choices=["auto", "small"], default="auto", help=weights)
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    add("--outdir", type=Path, default=Path("outputs/demo"), help="folder of the videos (default: outputs/demo)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(words)

    def prepare() -> Namespace:
        check_number("port", options.port, 1, 65535)
        check_address(options.host, options.port)
        writable_folder("outdir", options.outdir)
        require("gradio", "The demo", "demo")
        return options

    return run_checked(prepare, serve)


def serve(options: Namespace) -> str:
    """Serve the page until the program is interrupted."""
    from .page import serve_page  # gradio is optional, and takes seconds to import

    with serve_page(options.weights, options.outdir.resolve(), options.host, options.port) as address:
        logger.info("open %s; Ctrl-C ends the demo", address)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
