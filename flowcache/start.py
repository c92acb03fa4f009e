"""Entry point of the programs: Ctrl-C leaves no traceback while libraries load, which takes seconds."""

import os
import signal
import sys


def main(*words: str) -> int:
    """Run ``flowcache WORDS`` with the words of the command line behind them; returns the exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    # Transformers warns about every image processor that lacks torchvision; none of them is used here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from .cli import main  # after the handler

    return main([*words, *sys.argv[1:]])
