"""The public API, `import kd`: light and typed; every example in docs/api.md and in the docstrings holds."""

import ast
import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import kd
from kd.config.compose import PROJECT
from kd.networks import build, saved
from kd.settings import NetworkSettings

DOCUMENT = PROJECT / "docs" / "api.md"
#: Modules whose docstrings have examples.
EXAMPLES = [
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for path in sorted((PROJECT / "kd").rglob("*.py"))
    if re.search(r"^ +>>> ", path.read_text("utf-8"), re.M)
]


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A working directory with the finished run that the documentation names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
    network = build.build(settings, 1, ("background", "foreground"), "student")
    folder = Path("runs/2026-11-21/10-15-30-123456")
    saved.save(network, folder / "student.safetensors")
    return network, folder


def failures(text: str, name: str, names: dict) -> str:
    """Run the examples of a text; returns doctest's report of failures."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(doctest.DocTestParser().get_doctest(text, names, name, name, 0), out=report.append)
    return "".join(report)


def test_every_example_of_the_document_holds(run_folder):
    text = DOCUMENT.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"```pycon\n(.*?)```", text, re.DOTALL))
    assert examples.count(">>>") > 30
    failed = failures(examples, DOCUMENT.name, {"__name__": "__main__"})
    assert not failed, f"\n{failed}"


@pytest.mark.parametrize("module", EXAMPLES)
def test_every_example_of_a_docstring_holds(module):
    found = import_module(module)
    tests = [test for test in doctest.DocTestFinder().find(found) if test.examples]
    assert tests
    report: list[str] = []
    for test in tests:
        doctest.DocTestRunner().run(test, out=report.append)
    assert report == []


def test_the_modules_with_examples_are_found():
    assert len(EXAMPLES) >= 7  # a search in the wrong place finds fewer


def test_lazy_and_typed_imports_name_the_same_modules():
    tree = ast.parse((PROJECT / "kd" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {f"{node.module}.{alias.name}" for node in block.body for alias in node.names}
    lazy = {f"kd.{module}.{name}" for module, names in kd._HOMES.items() for name in names}
    assert typed == lazy
    assert sorted(kd.__all__) == sorted(name.rpartition(".")[2] for name in lazy)


@pytest.mark.parametrize("name", kd.__all__)
def test_a_public_name_exists_and_is_documented_and_listed(name):
    found = getattr(kd, name)
    assert found.__doc__
    assert found.__module__.startswith("kd.")
    assert name in dir(kd)
    assert f"`{name}`" in DOCUMENT.read_text(encoding="utf-8")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Cosin'"):
        kd.Cosin  # noqa: B018
    with pytest.raises(ImportError):
        from kd import Cosin  # noqa: F401


def test_the_package_and_its_plans_need_no_torch():
    code = (
        "import sys, kd; assert not {m for m in sys.modules if m.startswith('kd.')};"
        "from kd import Cosine, Progressive, Timeline, LearningRates;"
        "assert not {'torch', 'numpy', 'hydra', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_the_package_is_marked_as_typed():
    assert (PROJECT / "kd" / "py.typed").exists()


# kd.load


def test_a_loaded_student_gives_the_logits_of_the_saved_one(run_folder):
    network, folder = run_folder
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for path in (folder, str(folder), folder / "student.safetensors"):
        loaded = kd.load(path)
        assert not loaded.training
        with torch.inference_mode():
            assert torch.equal(loaded(images), network.eval()(images))


def test_a_file_that_is_not_a_network_is_a_one_line_error(tmp_path):
    (tmp_path / "notes.safetensors").write_text("no weights")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "notes.safetensors"):
        with pytest.raises(kd.ModelError) as error:
            kd.load(path)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)
