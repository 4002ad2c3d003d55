"""python -m vits_prune"""

import sys

from vits_prune.interrupt import stop_at_once


def run() -> int:
    """Run the command line; Ctrl-C ends it at any moment, even while modules load."""
    stop_at_once()
    from vits_prune.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
