"""The house, checked from the source: a module imports only from lower floors, and nothing untrusted is executed.

Every import statement counts, at the top of a module or inside a function, run or not (`if TYPE_CHECKING`).
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {
    0: [
        "errors",
        "files",
        "schedules",
        "unfreeze",
        "losses",
        "metrics",
        "timeline",
        "encoders",
        "launch",
        "terminal",
        "calibration",
        "environment",
    ],
    1: [
        "world",
        "batch_norm",
        "whole_batch",
        "replica",
        "settings",
        "spec",
        "blocks",
        "opening",
        "network",
        "precision",
        "weights",
        "models",
        "finished",
        "sealed",
        "slots",
        "answers",
        "data",
        "foreign",
        "teacher",
    ],
    2: ["snapshot", "steps", "training", "evaluation", "close_look"],
    3: [
        "stopping",
        "checkpoint",
        "course",
        "tracking",
        "plots",
        "data_report",
        "cache_folder",
        "export",
        "predict",
        "latency",
        "run_folder",
        "console",
        "study",
    ],
    4: [
        "composition",
        "config",
        "mistakes",
        "resume",
        "sweep",
        "study_folder",
        "runner",
        "teacher_cache",
        "teacher_store",
        "deploy",
        "evidence",
        "report",
        "experiment",
        "cli",
    ],
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
#: On the ground floor: the plan is a schedule and a policy side by side; a file that cannot be written is an error, and
#: so is a study that is started several times over.
GROUND_FLOOR = {("timeline", "schedules"), ("timeline", "unfreeze"), ("files", "errors"), ("launch", "errors")}

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "kd").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in SOURCES.items()}
#: Modules of the house that the table lacks: one test fails for each by name, and no other stumbles over them.
UNPLACED = {Path(name).parts[1].removesuffix(".py") for name in SOURCES} - {"__init__", *FLOOR_OF}
TRAIN = ast.parse((ROOT / "train.py").read_text(encoding="utf-8"), "train.py")


def dotted(source):
    """kd/data/shapes.py -> (kd, data, shapes); a package's __init__.py is the package."""
    parts = Path(source).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def module_of(source):
    """A file's name in the table: kd/data/shapes.py -> data, kd/losses.py -> losses, kd/__init__.py -> ''."""
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


def house_imports(source, tree):
    """The names in the table of the kd modules that a file imports; '' for the bare package."""
    names = (name.split(".") for name in imports(source, tree))
    return {(*parts, "")[1] for parts in names if parts[0] == "kd"}


def foreign_imports(source, tree):
    """The top-level packages that a file imports."""
    return {name.split(".")[0] for name in imports(source, tree)}


def for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def misplaced(source, tree):
    """What a file imports and may not: (module, imported) pairs."""
    here = module_of(source)
    others = house_imports(source, tree) - {here}
    if here == "":  # what it shows is fetched when it is asked for; type checkers are told where it lies
        at_once = house_imports(source, ast.Module([node for node in tree.body if not for_type_checkers(node)], []))
        return {(here, other) for other in others if other in at_once or FLOOR_OF.get(other, 0) == 4}

    def allowed(other):
        if other not in FLOOR_OF:
            return other in UNPLACED
        above_ground = FLOOR_OF[here] > 0 or (here, other) in GROUND_FLOOR
        return FLOOR_OF[other] < FLOOR_OF[here] or (FLOOR_OF[other] == FLOOR_OF[here] and above_ground)

    return {(here, other) for other in others if not allowed(other)}


def circle(trees):
    """Modules that import each other in a circle, in order; empty where none do. `trees`: file name -> source tree."""
    graph = {}
    for source, tree in trees.items():
        here = module_of(source)
        graph.setdefault(here, set()).update(house_imports(source, tree) - {here})
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


@pytest.mark.parametrize("source", SOURCES)
def test_every_module_stands_on_a_floor(source):
    assert module_of(source) in FLOOR_OF or source == "kd/__init__.py", f"{source} is on no floor: add it to FLOORS"


def test_no_module_stands_on_two_floors():
    assert len(FLOOR_OF) == sum(len(modules) for modules in FLOORS.values())


@pytest.mark.parametrize("source", [source for source in SOURCES if module_of(source) in {"", *FLOOR_OF}])
def test_a_module_imports_only_from_lower_floors(source):
    assert misplaced(source, TREES[source]) == set()


def test_modules_do_not_import_each_other_in_a_circle():
    assert circle(TREES) == []


# who knows what


def test_only_tracking_knows_mlflow():
    knowing = {source for source, tree in TREES.items() if "mlflow" in foreign_imports(source, tree)}
    assert {module_of(source) for source in knowing} == {"tracking"}
    assert "mlflow" not in foreign_imports("train.py", TRAIN)


def test_only_export_and_foreign_teachers_know_onnx():
    onnx = {"onnx", "onnxruntime"}
    knowing = {source for source, tree in TREES.items() if onnx & foreign_imports(source, tree)}
    assert {module_of(source) for source in knowing} == {"export", "foreign"}


def test_only_the_study_rooms_know_optuna():
    knowing = {source for source, tree in TREES.items() if "optuna" in foreign_imports(source, tree)}
    assert {module_of(source) for source in knowing} <= {"study", "study_folder", "sweep"}


def test_only_the_top_floor_and_train_know_hydra():
    knowing = {source for source, tree in TREES.items() if {"hydra", "omegaconf"} & foreign_imports(source, tree)}
    assert {module_of(source) for source in knowing} - UNPLACED <= set(FLOORS[4])
    assert "hydra" in foreign_imports("train.py", TRAIN)


# invariant 12


@pytest.mark.parametrize("source", [*SOURCES, "train.py"])
def test_nothing_untrusted_is_unpickled_or_executed(source):
    assert list(untrusted(TREES.get(source, TRAIN))) == []


# the checker itself


@pytest.mark.parametrize(
    ("source", "code", "found"),
    [
        ("kd/losses.py", "import kd.models", {("losses", "models")}),
        ("kd/losses.py", "from kd import models", {("losses", "models")}),
        ("kd/losses.py", "def f():\n  from kd.models import build", {("losses", "models")}),
        ("kd/losses.py", "if TYPE_CHECKING:\n  from kd.cli import main", {("losses", "cli")}),
        ("kd/losses.py", "from . import models", {("losses", "models")}),
        ("kd/losses.py", "from .metrics import Confusion", {("losses", "metrics")}),
        ("kd/data/shapes.py", "from ..training import fit", {("data", "training")}),
        ("kd/data/__init__.py", "from .. import training", {("data", "training")}),
        ("kd/models.py", "from kd.brand_new import thing", {("models", "brand_new")}),
        ("kd/models.py", "import kd", {("models", "")}),
        ("kd/__init__.py", "from kd.losses import binary_kl", {("", "losses")}),
        ("kd/__init__.py", "if TYPE_CHECKING:\n  from kd.losses import binary_kl", set()),
        ("kd/__init__.py", "if TYPE_CHECKING:\n  from kd.cli import main", {("", "cli")}),
        ("kd/data/shapes.py", "from kd.data.keys import stream\nfrom . import source", set()),
        ("kd/models.py", "from kd.blocks import Partition\nfrom kd.losses import binary_kl", set()),
        ("kd/cli.py", "import kd.losses as losses, torch", set()),
        ("kd/timeline.py", "from kd.schedules import Schedule", set()),
    ],
)
def test_an_import_is_found_wherever_and_however_it_is_written(source, code, found):
    assert misplaced(source, ast.parse(code)) == found


def test_a_circle_is_found():
    models, teacher = ast.parse("def f():\n  from kd.teacher import Live"), ast.parse("from kd import models")
    assert set(circle({"kd/models.py": models, "kd/teacher.py": teacher})) == {"models", "teacher"}
    assert circle({"kd/models.py": ast.parse(""), "kd/teacher.py": teacher}) == []


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
