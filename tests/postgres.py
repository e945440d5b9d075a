"""A PostgreSQL server of the tests' own: on a free port, in a temporary folder, with a password, gone at the end."""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

USER = "learner"
TOKEN = "battery-staple-Xq7"  # stands in the password however it is quoted, and nowhere else
PASSWORD = f"{TOKEN}@horse"

#: Where the binaries, the data and the log are, and the port; `control` deals with it.
Server = namedtuple("Server", "binaries folder port")


def find_binaries() -> Path | None:
    """The folder with initdb and pg_ctl: of pg_config, of Debian's packages, or on the PATH."""
    try:
        told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        told = ""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(9), reverse=True)
    on_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in ([Path(told)] if told else []) + debian + on_path:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def owner() -> str:
    """Who runs the server: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return getpass.getuser()
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), "")


def as_owner(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    entry = pwd.getpwnam(owner())
    user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with open(cwd / "commands.log", "a") as log:  # no pipe: the server would hold it open
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=env, **user)
    if done.returncode:
        logs = "".join(path.read_text(errors="replace") for path in cwd.glob("*.log"))
        raise RuntimeError(f"{Path(command[0]).name} {command[1]} failed: {logs}")
    return done


def control(server: Server, action: str, *options: str) -> None:
    """Start, stop or restart the server, and wait until that is done."""
    data = ["-D", str(server.folder / "data"), "-w", "-t", "60", "-l", str(server.folder / "server.log")]
    as_owner([str(server.binaries / "pg_ctl"), action, *data, *options], server.folder)


def initialise(server: Server) -> None:
    """An empty cluster whose only user has a password."""
    (server.folder / "password").write_text(PASSWORD)
    if os.geteuid() == 0:
        for path in (server.folder, server.folder / "password"):
            shutil.chown(path, owner())
    login = ["-U", USER, "-A", "scram-sha-256", f"--pwfile={server.folder / 'password'}"]
    as_owner(
        [str(server.binaries / "initdb"), "-D", str(server.folder / "data"), "-E", "UTF8", "--locale=C", "-N", *login],
        server.folder,
    )
    lines = [
        f"port = {server.port}", "listen_addresses = '127.0.0.1'", "unix_socket_directories = ''", "fsync = off",
        "shared_buffers = 16MB", "max_connections = 60",
    ]  # fmt: skip
    with open(server.folder / "data" / "postgresql.conf", "a") as conf:
        conf.write("\n".join([*lines, ""]))


@contextmanager
def running_server() -> Iterator[Server]:
    """A server for as long as the block lasts; the test is skipped where none is installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (initdb and pg_ctl were not found)")
    if not owner():
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody to run it")
    folder = Path(tempfile.mkdtemp(prefix="kd-postgres-"))
    try:
        server = Server(binaries, folder, free_port())
        initialise(server)
        control(server, "start")
        try:
            yield server
        finally:
            control(server, "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def connect(server: Server, database: str = "postgres") -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
    )


def fresh_database(server: Server) -> str:
    """The name of a database that is new and empty."""
    name = f"study_{uuid4().hex[:12]}"
    with connect(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    return name


def address(server: Server, database: str, password: str | None = None, port: int | None = None) -> str:
    """A database as an address, without a password unless one is given."""
    secret = "" if password is None else f":{quote(password, safe='')}"
    return f"postgresql://{USER}{secret}@127.0.0.1:{port or server.port}/{database}"
