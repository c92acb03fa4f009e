"""``flowcache generate --model self_forcing``: one video, with the original's flags."""

import sys

from flowcache.__main__ import main

if __name__ == "__main__":
    sys.exit(main("generate", "--model", "self_forcing"))
