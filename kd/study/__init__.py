"""A study: many runs, one question, one database. No other part of kd imports Optuna.

hydra_options  what `hydra.sweeper` asks for, as database, sampler, pruner and search space
space          what is searched and what is fixed; a study refuses to continue with another space
address        where a study's database is: sqlite or PostgreSQL
storage        the database, its schema, and the lock that all its users share
ledger         which trial runs next, which workers are dead, what is retried, when the study is complete
sweep          the sweeper: claims trials and launches their jobs
worker         which process runs a trial, and whether it is alive
trial          the job's side of a trial: heartbeat, reports, pruning, result
no_trial       the same interface for a run outside any study
attributes     the names of what the database says of a trial
search         the space of a study, checked against the configurations that it leads to
results        the table, the best trials, what pruning saved, from the database alone
comparison     two studies, or two arms, over their winners' seeds, with intervals
protocol       `kd verdict`: the steps from a recipe to its verdict
tables         results as tables and lines
show           `kd study`: tables on a terminal
plots          a study as pictures, a PNG each
pictures       its plots: ours, and Optuna's interactive pages of the same names
origin         a study's question, and the option files of its own --config-dir
files          what is generated into a study's folder
recipe         the best trial as an option file, and what an option file of somebody else may contain
folder         runs/studies/<study>/ and the study's parent run in MLflow

The database is the truth about a study, as the run folder is about a run; MLflow and runs/studies/ mirror it.
"""
