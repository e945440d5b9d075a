"""Which samples come together, in which order, from which workers."""
