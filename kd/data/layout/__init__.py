"""Which file belongs to which sample, and which sample to which split."""
