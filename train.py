"""Distil one student, or, with -m, run a study: `kd train` as a script, for a clone. `python train.py --help` has more.

The shells' completion of Hydra looks for the text @hydra.main in this file.
"""

import sys

from kd.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
