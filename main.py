"""NetVLAD for visual place recognition: cluster, train and test by command.

    python main.py --mode=cluster     # visual words that initialise NetVLAD
    python main.py --mode=train       # weakly supervised triplets
    python main.py --mode=test        # Recall@N

This file only reads the command line and calls the mode; `vpr/` holds the rest.
"""

import sys

try:
    from vpr.cli.app import main
except ModuleNotFoundError as missing:
    if str(missing.name).partition(".")[0] == "vpr":
        raise
    print(
        f"error: the package {missing.name} is not installed: make environment and . .venv/bin/activate, or "
        "pip install -r requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
