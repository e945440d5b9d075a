"""The items of `make gpu`, each in a process of its own; `benchmarks/GPU.md` says what they ask."""
