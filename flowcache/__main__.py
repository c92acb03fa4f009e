"""Entry point of the programs, as ``python -m flowcache generate|sample|... ...`` too."""

import os
import signal
import sys
from pathlib import Path

if not __package__:  # torchrun starts this file by its path
    sys.path[0] = str(Path(__file__).parents[1])


def main(*words: str) -> int:
    """Run ``flowcache WORDS`` with the words of the command line behind them; returns the exit code.

    Ctrl-C leaves no traceback while libraries load, which takes seconds.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    # Transformers warns about every image processor that lacks torchvision; none of them is used here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from flowcache.cli import main  # after the handler

    return main([*words, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
