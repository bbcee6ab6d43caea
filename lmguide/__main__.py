"""`python -m lmguide`: the command line."""

import sys

from lmguide.cli import main

if __name__ == "__main__":
    sys.exit(main())
