"""NetVLAD for visual place recognition: cluster, train and test by command.

    python main.py --mode=cluster     # visual words that initialise NetVLAD
    python main.py --mode=train       # weakly supervised triplets
    python main.py --mode=test        # Recall@N

This file only reads the command line and calls the mode; `vpr/` holds the rest.
"""

import sys

from vpr.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
