"""``flowcache sample --model skyreels_v2``: videos of a benchmark, with the original's name and flags."""

import sys

from flowcache.__main__ import main

if __name__ == "__main__":
    sys.exit(main("sample", "--model", "skyreels_v2"))
