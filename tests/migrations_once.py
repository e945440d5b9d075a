"""The scripts of alembic's migrations, loaded once in a process instead of several times for each database.

Optuna and MLflow ask which schema is their latest at every start; alembic runs all scripts for the answer.
"""

from functools import cache

import alembic.util


def use() -> None:
    """From now on this process remembers the scripts, but no env.py: running that is a migration."""
    load = alembic.util.load_python_file
    remembered = cache(load)
    alembic.util.load_python_file = lambda folder, name: (load if name == "env.py" else remembered)(folder, name)
