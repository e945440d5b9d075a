"""Addresses of studies: which there are, what is shown of them, and that no password is."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.errors import StudyError
from kd.study.address import Address, default_url, holds_password
from kd.study.storage import Database


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://host/db", "redis://host", "/a/b.db",
     "postgresql://me@host:port/db"],
)  # fmt: skip
def test_an_address_of_another_kind_is_refused(url):
    with pytest.raises(StudyError, match=r"hydra\.sweeper\.storage=.*sqlite:////absolute/path\.db") as error:
        Address(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["plain", "with space", "a@b", "ünder", "50%", "a:b@c", "a#b"])
def test_the_folder_of_a_project_may_have_any_name(name, tmp_path):
    folder = tmp_path / name
    database = Database(default_url(folder))
    assert database.file == (folder / "runs" / "studies" / "studies.db").resolve()
    database.open()
    assert database.file.exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql+psycopg://me:secret@host:5432/db",
        "postgresql://me:sec/ret@host/db",
        "postgresql://:secret@host/db",
        "postgresql://host/db?user=me&password=secret",
    ],
)
def test_an_address_with_a_password_is_known_and_never_shown(url):
    assert holds_password(url)
    for shown in (str(Database(url)), repr(Database(url))):
        assert "sec" not in shown
        assert "ret" not in shown


@pytest.mark.parametrize(
    "url", ["postgresql://me@host/db", "postgresql://host:5432/db", "postgresql:///db", "sqlite:////a/b.db", "nonsense"]
)
def test_an_address_without_a_password_is_known(url):
    assert not holds_password(url)


def test_a_folder_in_an_address_is_not_a_password():
    assert not holds_password("sqlite:////home/a:b@c/studies.db")


def test_a_refused_address_is_shown_without_its_password():
    with pytest.raises(StudyError) as error:
        Address("mysql://me:secret@host/db")
    assert "secret" not in str(error.value)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)), st.sampled_from(["{}", ":{}", "me:{}"]))
def test_no_sign_of_an_encoded_user_or_password_is_shown(word, form):
    secret = form.format(quote(f"/; @{word}Xq7", safe=""))
    with pytest.raises(StudyError) as error:
        Address(f"mysql://{secret}@host:9/db")
    assert "mysql://***@host:9/db: not an address that studies can use" in str(error.value)
    assert str(Address(f"postgresql://{secret}@host:9/db")) == "postgresql://***@host:9/db"


def test_a_database_that_is_a_loop_of_links_has_an_address_and_cannot_be_used(tmp_path):
    file = tmp_path / "runs" / "studies" / "studies.db"
    file.parent.mkdir(parents=True)
    file.symlink_to(file.name)
    assert default_url(tmp_path) == f"sqlite:///{file}"
    with pytest.raises(StudyError, match="cannot be used"):
        Database(default_url(tmp_path)).open()


def test_a_server_has_no_file_and_is_assumed_to_exist(tmp_path):
    assert Address("postgresql://me@host/db").file is None
    assert Address("postgresql://me@host/db").exists()
    assert not Address(f"sqlite:///{tmp_path}/studies.db").exists()
