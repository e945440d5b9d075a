"""Teachers that this project did not train: their files, how they are run, and how they come to speak as ours do."""
