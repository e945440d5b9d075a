"""From the command line to settings: composing, validating, resuming, and reporting what is wrong.

A DictConfig is seen here, in the sweeper (kd.study) and where a job starts (kd.experiment.job), and nowhere else.
"""
