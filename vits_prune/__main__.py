"""python -m vits_prune"""

import sys

from vits_prune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
