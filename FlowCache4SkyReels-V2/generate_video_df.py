"""``flowcache generate --model skyreels_v2``: one video, with the original's name and flags."""

import sys

from flowcache.__main__ import main

if __name__ == "__main__":
    sys.exit(main("generate", "--model", "skyreels_v2"))
