"""What a student learns from: the losses, and a teacher's logits, live or cached."""
