"""Help, completion and file names, and portability to Windows."""

import ast
import os
import re
import subprocess
import sys
from datetime import datetime

import pytest

from kd import cli
from kd.cli import main
from kd.config.compose import CONF, PROJECT
from kd.errors import ConfigError
from kd.study.hydra_options import check_name

SOURCES = [*(PROJECT / "kd").rglob("*.py"), *(PROJECT / "hydra_plugins").rglob("*.py"), PROJECT / "train.py"]
#: Modules that Windows' Python does not have.
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline"}
#: Names of `os` and `signal` that it does not have, of those one is tempted to use.
POSIX_NAMES = {
    "os": "fork forkpty getuid geteuid getgid setsid killpg pread preadv pwrite pwritev sysconf sched_getaffinity "
    "uname getloadavg posix_fallocate statvfs mkfifo chown O_NONBLOCK O_NOFOLLOW O_DIRECTORY O_CLOEXEC WNOHANG waitid",
    "signal": "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE SIGSTOP SIGCONT alarm setitimer pthread_sigmask",
}
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$')  # in a file's name, on Windows


def unguarded(tree):
    """Unguarded uses of what Windows lacks: modules outside `with suppress(ImportError)`, names outside `hasattr`."""
    tried = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "suppress(ImportError)" in ast.unparse(block.items[0])
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in tried:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from sorted(POSIX_MODULES.intersection(names))
    guarded = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "hasattr(" in ast.unparse(test.test)
        for branch in test.body
        for node in ast.walk(branch)
        if isinstance(node, ast.Attribute) and f"hasattr({ast.unparse(node.value)}, '{node.attr}')" in ast.unparse(test)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name) or id(node) in guarded:
            continue
        if node.attr in POSIX_NAMES.get(node.value.id, "").split():
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_nothing_missing_on_windows_is_used(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(unguarded(tree)) == []


def test_unguarded_names_missing_on_windows_are_found():
    assert sorted(unguarded(ast.parse("import os\nos.fork()\nx = signal.SIGKILL"))) == ["os.fork", "signal.SIGKILL"]
    assert list(unguarded(ast.parse("if hasattr(os, 'pread'):\n  os.pread(0, 1, 2)\n  os.pwrite()"))) == ["os.pwrite"]


def test_unguarded_modules_missing_on_windows_are_found():
    assert list(unguarded(ast.parse("def f():\n  import fcntl, os\nfrom pwd import getpwnam"))) == ["pwd", "fcntl"]
    assert list(unguarded(ast.parse("with suppress(ImportError):\n  import resource"))) == []


@pytest.mark.slow
def test_the_commands_start_without_modules_missing_on_windows():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(POSIX_MODULES - {'posix'})}));"
        "import kd, kd.system.launch, kd.system.terminal, kd.system.files, kd.study.hydra_options,"
        "kd.config.hydra_errors, kd.data;"
        "from kd.cli import main; main(['preview', 'trainer.epochs=1', 'unfreeze=all'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("epochs")


def test_run_folders_have_portable_names():
    formats = re.findall(r"\$\{now:([^}]*)\}", (CONF / "config.yaml").read_text(encoding="utf-8"))
    assert formats
    for form in formats:
        for part in datetime(2026, 11, 21, 8, 0, 0, 5).strftime(form).split("/"):
            assert not FORBIDDEN.search(part), form


@pytest.mark.parametrize("name", ["a:b", "a\\b", "a/b", "what?", "trailing.", "con", "NUL.txt", "com1"])
def test_a_study_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(ConfigError, match="it also names a folder"):
        check_name(name)


@pytest.mark.parametrize("name", ["contrast", "a.b", "nullable", "com10", "_x-1"])
def test_other_study_names_are_accepted(name):
    assert check_name(name) == name


# help


VERBS = sorted({*cli.verbs(cli.parser())} - {"train"})  # whose help is Hydra's


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", ["40", "120"])
def test_every_verb_of_kd_has_help_with_an_example(verb, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "example: kd " in " ".join(out.split())


TRAIN = {"python train.py": ["train.py"], "kd train": ["-c", "from kd.cli import main; main()", "train"]}


@pytest.fixture(scope="module", params=TRAIN)
def train_help(request):
    """What a program prints as its help; `args` is the program, as it is typed."""
    done = subprocess.run(
        [sys.executable, *TRAIN[request.param], "--help"], capture_output=True, text=True, check=True, cwd=PROJECT,
        env={**os.environ, "FORCE_COLOR": "1"},
    )  # fmt: skip
    done.args = request.param
    return done


def test_help_of_train_lists_every_group_with_its_options(train_help):
    groups = dict(re.findall(r"^(\w+): (.*)$", train_help.stdout, re.MULTILINE))
    for folder in CONF.iterdir():
        if folder.is_dir() and folder.name != "hydra":
            options = {path.stem for path in folder.glob("*.yaml")}
            assert options <= set(groups[folder.name].split(", ")), folder.name


def test_help_of_train_shows_examples_and_the_configuration_without_colours(train_help):
    assert f"  {train_help.args} schedule=cosine unfreeze.rate=3" in train_help.stdout
    assert "encoder_lr_scale: 0.3" in train_help.stdout
    assert "-sc install=bash" in train_help.stdout
    assert "$" not in re.sub(r'"\$\(|\$\{', "", train_help.stdout)
    assert "\x1b" not in train_help.stdout
    assert train_help.stderr == ""


# completion


@pytest.mark.skipif(os.name == "nt", reason="bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sched", {"schedule=", "schedule."}),
        ("schedule=c", {"schedule=constant", "schedule=cosine"}),
    ],
)
def test_bash_completes_groups_options_and_keys(typed, offered):
    line = f"python train.py {typed}"
    env = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "train.py", "-sc", "query=bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=PROJECT, check=True)
    assert set(done.stdout.split()) == offered
    assert done.stderr == ""
