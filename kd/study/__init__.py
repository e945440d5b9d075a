"""A study: many distillations, one question, one database. The only part of the house that knows Optuna.

storage    the database: opened once, its schema made once, a lock that all its users share
space      what is searched and what is fixed; a study refuses to go on with another
ledger     which trial runs next, who is dead, what is tried again, when it is enough
trial      the job's side of a trial: alive, reporting, pruned, told
alone      what a run that belongs to no study shows instead
worker     who runs a trial, and whether he lives
results    the table, the best recipe, what pruning saved, one study against another
pictures   optuna's own plots, as pictures and as pages

The database is the truth about a study, as the run folder is about a run; MLflow and runs/studies/ mirror it.
"""
