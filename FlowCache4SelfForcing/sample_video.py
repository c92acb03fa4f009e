"""``flowcache sample --model self_forcing``: videos of a file of prompts or a benchmark, with the original's flags."""

import sys

from flowcache.__main__ import main

if __name__ == "__main__":
    sys.exit(main("sample", "--model", "self_forcing"))
