"""The house, checked from the source: a module imports only from lower floors, and nothing untrusted is executed.

Every import statement counts, at the top of a module or inside a function, run or not (`if TYPE_CHECKING`).
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kd.config.compose import PROJECT

#: The rooms of kd/, from the ground up: a room imports only from rooms before it. CONTRIBUTING.md shows this list.
ROOMS = (
    "errors", "plan", "system", "data", "settings", "networks", "distillation", "training", "config", "run",
    "tracking", "study", "deploy", "experiment", "report", "cli",
)  # fmt: skip

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

SOURCES = {path.relative_to(PROJECT).as_posix(): path for path in sorted((PROJECT / "kd").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in SOURCES.items()}
TRAIN = ast.parse((PROJECT / "train.py").read_text(encoding="utf-8"), "train.py")


def dotted(source):
    """kd/data/sets/shapes.py -> (kd, data, shapes); a package's __init__.py is the package."""
    parts = Path(source).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room_of(source):
    """The room of a file: kd/data/sets/shapes.py -> data, kd/errors.py -> errors, kd/__init__.py -> ''."""
    return (*dotted(source), "")[1]


def imports(source, tree):
    """What a file imports, dotted; `from a import b` gives a.b, which may name a module or a thing in one."""
    package = dotted(source) if source.endswith("__init__.py") else dotted(source)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def rooms_imported(source, tree):
    """The rooms that a file imports; '' for the bare package."""
    names = (name.split(".") for name in imports(source, tree))
    return {(*parts, "")[1] for parts in names if parts[0] == "kd"}


def foreign_imports(source, tree):
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(source, tree)}


def for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def misplaced(source, tree):
    """What a file imports and may not: (room, imported room) pairs."""
    here = room_of(source)
    if here == "":  # what it exports is imported on first use; type checkers read where it lies
        tree = ast.Module([node for node in tree.body if not for_type_checkers(node)], [])
        return {(here, other) for other in rooms_imported(source, tree)}
    allowed = {here, *ROOMS[: ROOMS.index(here)]}
    return {(here, other) for other in rooms_imported(source, tree) - allowed}


def modules_imported(source, tree):
    """The files of kd/ that a file imports, at its top or later."""
    for name in imports(source, tree):
        parts = name.split(".")
        for end in (len(parts), len(parts) - 1):  # the last part may be a name in a module
            for suffix in (".py", "/__init__.py"):
                if (found := "/".join(parts[:end]) + suffix) in SOURCES and found != "kd/__init__.py":
                    yield found
                    break
            else:
                continue
            break


def circle(trees):
    """Files that import each other in a circle, in order; empty where none do. `trees`: file name -> source tree."""
    graph = {source: {*modules_imported(source, tree)} - {source} for source, tree in trees.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def untrusted(tree):
    """Lines that could execute what a file says: unpicklers, loaders of more than data, eval and exec."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            roots = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if UNPICKLERS & {name.split(".")[0] for name in roots}:
                yield node.lineno, "unpickler"
            if isinstance(node, ast.ImportFrom) and node.module == "torch" and "load" in {a.name for a in node.names}:
                yield node.lineno, "torch.load under another name"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if called in {"eval", "exec", "builtins.eval", "builtins.exec"}:
                yield node.lineno, called
            if called in {"yaml.load", "yaml.full_load", "yaml.unsafe_load"}:
                yield node.lineno, "yaml loader other than safe_load"
            if called == "torch.load" and options.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True"
            if options.get("allow_pickle", "False") != "False":
                yield node.lineno, "allow_pickle"


# floors


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "kd/__init__.py"])
def test_every_module_is_in_a_room(source):
    assert room_of(source) in ROOMS, f"{source} is in no room: add it to ROOMS"


def test_every_room_is_there():
    assert {room_of(source) for source in SOURCES} - {""} == set(ROOMS)


@pytest.mark.parametrize("source", SOURCES)
def test_a_module_imports_only_from_rooms_before_its_own(source):
    assert misplaced(source, TREES[source]) == set()


def test_modules_do_not_import_each_other_in_a_circle():
    assert circle(TREES) == []


def test_contributing_shows_the_rooms_in_this_order():
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)(?:\.py|/)` \|", text, re.M)) == ROOMS


# who knows what


def test_only_tracking_knows_mlflow():
    knowing = {source for source, tree in TREES.items() if "mlflow" in foreign_imports(source, tree)}
    assert {room_of(source) for source in knowing} == {"tracking"}
    assert "mlflow" not in foreign_imports("train.py", TRAIN)


def test_only_export_and_foreign_teachers_know_onnx():
    onnx = {"onnx", "onnxruntime"}
    knowing = {source for source, tree in TREES.items() if onnx & foreign_imports(source, tree)}
    assert {source.rpartition("/")[0] for source in knowing} == {"kd/deploy/export", "kd/distillation/foreign"}


def test_only_studies_know_optuna():
    knowing = {source for source, tree in TREES.items() if "optuna" in foreign_imports(source, tree)}
    assert {room_of(source) for source in knowing} == {"study"}


def test_only_config_and_the_sweeper_know_hydra():
    hydra = {"hydra", "omegaconf"}
    knowing = {source for source, tree in TREES.items() if hydra & foreign_imports(source, tree)}
    assert {room_of(source) for source in knowing} <= {"config", "study", "experiment"}
    assert "kd/experiment/train.py" in knowing
    assert foreign_imports("train.py", TRAIN) == {"kd", "sys"}


# invariant 12


@pytest.mark.parametrize("source", [*SOURCES, "train.py"])
def test_nothing_untrusted_is_unpickled_or_executed(source):
    assert list(untrusted(TREES.get(source, TRAIN))) == []


# the checker itself


@pytest.mark.parametrize(
    ("source", "code", "found"),
    [
        ("kd/plan/schedules.py", "import kd.data", {("plan", "data")}),
        ("kd/plan/schedules.py", "from kd import data", {("plan", "data")}),
        ("kd/plan/schedules.py", "def f():\n  from kd.data.sets.folder import Folder", {("plan", "data")}),
        ("kd/plan/schedules.py", "if TYPE_CHECKING:\n  from kd.cli import main", {("plan", "cli")}),
        ("kd/plan/schedules.py", "from .. import data", {("plan", "data")}),
        ("kd/data/sets/shapes.py", "from ...training.loop import fit", {("data", "training")}),
        ("kd/data/__init__.py", "from .. import training", {("data", "training")}),
        ("kd/data/sets/shapes.py", "from kd.brand_new import thing", {("data", "brand_new")}),
        ("kd/data/sets/shapes.py", "import kd", {("data", "")}),
        ("kd/__init__.py", "from kd.plan import Cosine", {("", "plan")}),
        ("kd/__init__.py", "if TYPE_CHECKING:\n  from kd.plan import Cosine", set()),
        ("kd/data/sets/shapes.py", "from kd.data.random_streams import stream\nfrom . import source", set()),
        ("kd/cli/plan.py", "import kd.plan as plan, torch", set()),
    ],
)
def test_an_import_is_found_wherever_and_however_it_is_written(source, code, found):
    assert misplaced(source, ast.parse(code)) == found


def test_a_circle_is_found():
    build, teacher = "kd/networks/build.py", "kd/distillation/teacher.py"
    late, early = (
        ast.parse("def f():\n  from kd.distillation.teacher import Live"),
        ast.parse("from kd.networks import build"),
    )
    assert set(circle({build: late, teacher: early})) == {build, teacher}
    assert circle({build: ast.parse(""), teacher: early}) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n  from pickle import loads",
        "import numpy, dill",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "x = eval(text)",
        "exec(text)",
        "builtins.eval(text)",
    ],
)
def test_untrusted_code_is_found_however_it_is_written(code):
    assert len(list(untrusted(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "yaml.safe_load(text)",
        "model.eval()",
        "connection.execute(query)",
    ],
)
def test_trusted_code_is_left_alone(code):
    assert list(untrusted(ast.parse(code))) == []
