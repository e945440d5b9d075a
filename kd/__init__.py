"""Knowledge distillation of segmentation networks: see README.md."""
