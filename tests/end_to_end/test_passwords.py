"""A password in an address reaches no file and no terminal, whatever it is made of and however it was given.

A few examples, always the same; `make crash` draws a tenth of KD_FUZZ new ones.
"""

import os
from pathlib import Path
from urllib.parse import quote

import program
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

LONG = "KD_FUZZ" in os.environ
TOKEN = "Xq7hunter"  # stands in every password, and nowhere else
SMALL = [
    "backbone=tiny", "loss=hard_only", "unfreeze=all", "data.image_size=[32,32]", "data.train=4", "data.val=4",
    "data.test=4", "trainer.batch_size=4", "trainer.epochs=1", "trainer.device=cpu", "pictures=false",
]  # fmt: skip

signs = st.text("a1 \t/@:?#%&=+~!*()[]{};,.'\"\\<>|^`ä", max_size=6)
passwords = st.tuples(signs, signs).map(TOKEN.join)
places = st.sampled_from([
    "://me:{raw}@127.0.0.1:9/db", "://:{raw}@127.0.0.1:9/db", "://{quoted}@127.0.0.1:9/db",
    "://127.0.0.1:9/db?password={quoted}", "://me@127.0.0.1:9/db?api_key={quoted}&x=1",
    "://127.0.0.1:9/db?auth={quoted}", "://127.0.0.1:9/#token={quoted}",
])  # fmt: skip
schemes = st.sampled_from(["http", "https", "postgresql", "postgresql+psycopg", "mysql", "mssql+pyodbc", "ftp"])
addresses = st.builds(
    lambda scheme, place, word: scheme + place.format(raw=word, quoted=quote(word, safe="")), schemes, places, passwords
)

#: How an address is given: in an argument (ADDRESS, or QUOTED as Hydra reads it), or in the variable that comes first.
WAYS = [
    ["train.py", *SMALL, "tracking.uri=QUOTED"],
    ["train.py", "-m", *SMALL, "hydra.sweeper.storage=QUOTED", "tracking=none"],
    ["sync", "RUN", "--uri", "ADDRESS"],
    ["study", "--storage", "ADDRESS"],
    ["report", "study", "--storage", "ADDRESS"],
    ["preview", "tracking.uri=QUOTED"],
    ["MLFLOW_TRACKING_URI", "train.py", *SMALL],
    ["MLFLOW_TRACKING_URI", "sync", "RUN"],
    ["KD_STORAGE", "study"],
]


def quoted(text: str) -> str:
    """A text as Hydra's quoted string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("passwords")
    program.train(root, *SMALL, f"hydra.run.dir={root}/runs/one/run", "tracking=none").check_returncode()
    return root


@settings(
    max_examples=int(os.environ.get("KD_FUZZ", "60")) // 10,
    derandomize=not LONG,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(address=addresses, way=st.sampled_from(WAYS))
def test_a_password_in_an_address_reaches_no_file_and_no_terminal(root, address, way):
    words = [word.replace("RUN", f"{root}/runs/one/run").replace("ADDRESS", address) for word in way]
    words = [word.replace("QUOTED", quoted(address)) for word in words]
    env = dict(os.environ)
    if words[0].isupper():
        env[words.pop(0)] = address
    done = program.train(root, *words[1:], env=env) if words[0] == "train.py" else program.run_kd(root, *words, env=env)
    assert TOKEN not in done.stdout + done.stderr, done
    assert "Traceback" not in done.stderr, done.stderr
    assert [path for path in root.rglob("*") if holds(path, TOKEN.encode())] == []


def holds(path: Path, token: bytes) -> bool:
    return token.decode() in str(path) or (path.is_file() and token in path.read_bytes())
