"""The attributes by which a study's database describes its trials, by name. Light: every run imports it."""

MLFLOW_RUN = "mlflow_run"  # of a trial, and of the study: the id of its run
RUN_FOLDER = "run_folder"
WORKER = "worker"  # the process that trains it (`kd.study.worker.this_process`)
FAILURE = "failure"  # its kind and its reason
RECIPE = "recipe"  # a digest of what it trains with (`kd.settings.keys.recipe_digest`)
INHERITED_EPOCHS = "inherited_epochs"  # what a retry was given by the attempt before it
