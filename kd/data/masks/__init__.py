"""What the pixels of a mask stand for, and how often each class is there."""
