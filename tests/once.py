"""What libraries would do again for every test, done once in a process."""

import composed_once
import encoders_once
import migrations_once
import mlflow_tables


def use() -> None:
    """From now on this process remembers all of it; `mlflow_tables.share` has begun the session."""
    mlflow_tables.reuse()
    migrations_once.use()
    composed_once.use()
    encoders_once.use()
