"""``python -m flowcache generate|sample|benchmark|metrics ...``"""

import sys
from pathlib import Path

if not __package__:  # torchrun starts this file by its path
    sys.path[0] = str(Path(__file__).parents[1])

from flowcache.start import main

if __name__ == "__main__":
    sys.exit(main())
