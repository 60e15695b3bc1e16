"""`python -m velollm` is `velollm`."""

import sys

from velollm.cli import main

if __name__ == "__main__":
    sys.exit(main())
