"""One job from settings to summary: a teacher found or trained, a student distilled, both measured."""
