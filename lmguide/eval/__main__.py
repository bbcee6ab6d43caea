"""`python -m lmguide.eval`: the command `lmguide eval`, for `accelerate launch -m` and the like."""

import sys

from lmguide.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
