"""What a network is shown of a picture: its size, a crop, a window, an augmentation."""
