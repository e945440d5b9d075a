"""What is wrong with a data set, and what its files show together."""
