"""The study sweeper: `hydra/sweeper=study`, what `python train.py -m` runs."""
