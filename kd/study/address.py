"""The address of a study's database: sqlite for one machine, PostgreSQL for many. It may hold a password."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from kd.errors import SECRET, StudyError, check_address, without_credentials
from kd.system.files import real
from kd.system.places import STUDIES

#: What an address may be, for error messages.
HINT = (
    "use sqlite:////absolute/path.db or postgresql://user@host/database, with the password in PGPASSWORD or ~/.pgpass"
)


def default_url(root: Path) -> str:
    """The sqlite database for all studies under `root`.

    Raises:
        StudyError: the path holds a character that an address cannot.
    """
    path = real(root / STUDIES / "studies.db").as_posix()
    if "?" in path:
        raise StudyError(f"{path} contains a ?, which a database address cannot; choose another root, or a storage")
    return f"sqlite:///{path}"


#: What `make_url` raises if a text is not an address, for example if its port is not a number.
NO_ADDRESS = (ArgumentError, ValueError)


def holds_password(url: str) -> bool:
    """Whether an address contains a password, which would be copied into every run folder."""
    try:
        parts = make_url(url)
    except NO_ADDRESS:
        return re.search(r"//[^/@\s]*:\S+@", url) is not None
    return bool(parts.password or SECRET.search(url))


@dataclass(frozen=True)
class Address:
    """An address in SQLAlchemy's form; printed without its credentials.

    Attributes:
        url: never shown or written whole, as it may contain a password.

    Raises:
        StudyError: it is an address of neither sqlite nor PostgreSQL, or names no database.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        check_address("hydra.sweeper.storage (KD_STORAGE, or --storage)", self.url)
        try:
            url = make_url(self.url)
            persistent = url.get_backend_name() == "postgresql" or url.database not in (None, "", ":memory:")
        except NO_ADDRESS:
            persistent = False
        if not persistent or url.get_backend_name() not in ("sqlite", "postgresql"):
            raise StudyError(f"hydra.sweeper.storage={self}: not an address that studies can use; {HINT}")

    def __str__(self) -> str:
        try:
            url = make_url(self.url)
        except NO_ADDRESS:
            return without_credentials(self.url)
        place = URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
        shown = without_credentials(unquote(place))  # sqlalchemy takes #token=... for a part of the name
        return shown if url.username is None and url.password is None else shown.replace("://", "://***@", 1)

    @property
    def file(self) -> Path | None:
        """The sqlite file; None for a server."""
        url = make_url(self.url)
        return Path(url.database or "") if url.get_backend_name() == "sqlite" else None

    def exists(self) -> bool:
        """Whether the sqlite file exists; always True for a server."""
        return self.file is None or self.file.exists()

    @property
    def address(self) -> URL:
        """The address with psycopg 3 as PostgreSQL's driver."""
        url = make_url(self.url)
        return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url

    @property
    def connection(self) -> dict[str, Any]:
        """Connect arguments: timeouts in seconds, and keepalives that let the server notice a host that lost power."""
        if self.file is not None:
            return {"timeout": 60}
        alive = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
        return {"connect_timeout": 10, "options": make_url(self.url).query.get("options", alive)}
