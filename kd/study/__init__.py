"""A study: many runs, one question, one database. No other part of kd imports Optuna.

hydra_options  what `hydra.sweeper` asks for, as database, sampler, pruner and search space
space          what is searched and what is fixed; a study refuses to continue with another space
storage        the database, its schema, and the lock that all its users share
ledger         which trial runs next, which workers are dead, what is retried, when the study is complete
sweep          the sweeper: claims trials and launches their jobs
worker         which process runs a trial, and whether it is alive
trial          the job's side of a trial: heartbeat, reports, pruning, result
no_trial       the same interface for a run outside any study
results        the table, the best trials, what pruning saved, comparisons, from the database alone
show           the results as tables for a terminal
pictures       Optuna's plots as PNG and HTML
recipe         the best trial as an option file, and what an option file of somebody else may contain
folder         runs/studies/<study>/ and the study's parent run in MLflow

The database is the truth about a study, as the run folder is about a run; MLflow and runs/studies/ mirror it.
"""
