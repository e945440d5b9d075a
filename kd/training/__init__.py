"""The training loop, and what tells how good a network is."""
