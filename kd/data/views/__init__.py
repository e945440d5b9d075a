"""What a network is shown of a picture: a crop, a window, an augmentation."""
