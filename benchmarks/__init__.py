"""What `make bench` and `make crash` run; no part of the package."""

import os

# Read when torch is loaded, as in train.py: idle threads sleep instead of spinning in the way of a loader's processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
