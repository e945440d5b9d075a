"""One file, read safely: pictures and masks in any format, with the numbers that they store."""
