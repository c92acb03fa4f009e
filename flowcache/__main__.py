"""``python -m flowcache generate|sample|benchmark|metrics ...``"""

import sys

from .start import main

if __name__ == "__main__":
    sys.exit(main())
