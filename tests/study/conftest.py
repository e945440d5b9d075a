"""A database for the tests of a module."""

import pytest
from sqlalchemy import event

from kd.study.storage import Database


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database of this module, which does not wait for the disk."""
    made = Database(f"sqlite:///{tmp_path_factory.mktemp('database')}/studies.db")
    engine = made.open().engine
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    engine.dispose()
    return made
