"""python -m vits_prune"""

import sys

from vits_prune.cli import main

if __name__ == "__main__":
    sys.exit(main())
