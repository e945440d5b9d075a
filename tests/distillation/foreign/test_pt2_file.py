"""A file of torch.export is run as torch runs it, and nothing that a hostile one says is executed."""

import io
import json
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import hand_made
from traps import MARK, Trap

from kd.distillation.foreign.network import Foreign, first, probe
from kd.distillation.foreign.pt2_file import exported_network
from kd.errors import ModelError
from kd.settings import NORMALISATIONS, Normalisation

SIZES = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


class Varied(nn.Module):
    """Operators that networks have beside convolutions; it splits, stacks, resizes, makes tensors, counts sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.grow, self.norm = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("shift", torch.arange(8.0).view(1, 8, 1, 1), persistent=False)
        self.head, self.tied = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.tied.weight = self.head.weight

    def forward(self, x):
        batch, _, height, width = x.shape
        grown = self.norm(self.grow(x)).sigmoid() + self.shift
        small = nn.functional.interpolate(grown, (height // 2, width // 2), mode="bicubic")
        words = small.flatten(2).transpose(1, 2)
        attended = self.attend(words, words, words, need_weights=False)[0]
        small = attended.transpose(1, 2).reshape(batch, 8, height // 2, width // 2)
        one, other = nn.functional.gelu(small).chunk(2, dim=1)
        small = torch.cat([one * torch.ones(1, 4, 1, 1, device=x.device), other.clamp(0, 6)], 1)
        return {"out": self.head(small), "aux": self.tied(small)}


def save(network: nn.Module, path: Path, example: torch.Tensor, dynamic=None) -> Path:
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=dynamic and (dynamic,))
    torch.export.save(program, path)
    return path


def pictures(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.manual_seed(0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network of any batch and size, and its file."""
    network = hand_made(seed=1).body
    return network, save(network, tmp_path_factory.mktemp("plain") / "teacher.pt2", pictures(2, 3, 32, 32), SIZES)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    torch.manual_seed(0)
    network = Varied()
    return network, save(network, tmp_path_factory.mktemp("varied") / "teacher.pt2", pictures(2, 3, 16, 24), SIZES)


# the same answers


@pytest.mark.parametrize("which", ["plain", "varied"])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 64, 32)])
@torch.no_grad()
def test_a_program_answers_as_the_network_that_was_exported(which, shape, request):
    network, file = request.getfixturevalue(which)
    body = exported_network(file)
    assert body.takes == (None, None, None)
    assert body.parameters == sum(parameter.numel() for parameter in network.parameters())
    images = pictures(*shape)
    torch.testing.assert_close(first(body.run(images)), first(network(images)))


@torch.no_grad()
def test_a_program_answers_alike_each_time_and_leaves_its_input_alone(varied):
    body, images = exported_network(varied[1]), pictures(2, 3, 16, 24)
    before = images.clone()
    assert torch.equal(body.run(images), body.run(images))
    assert torch.equal(images, before)


def test_a_program_of_one_size_takes_that_size(plain, tmp_path):
    network, file = plain[0], tmp_path / "teacher.pt2"
    body = exported_network(save(network, file, pictures(2, 3, 32, 64)))
    assert body.takes == (2, 32, 64)
    foreign = Foreign(body, Normalisation(**NORMALISATIONS["none"]), 1, ("background", "foreground"))
    images = torch.randint(0, 256, (3, 3, 32, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(foreign(images), network(images / 255))
    with pytest.raises(ModelError, match=r"32 x 64.*data.image_size=\[32, 64\]"):
        probe(foreign, (64, 64), "teacher.path=x")


def test_a_program_in_training_mode_is_refused(tmp_path):
    program = torch.export.export(hand_made().body.train(), (pictures(2, 3, 32, 32),))
    torch.export.save(program, tmp_path / "teacher.pt2")
    with pytest.raises(ModelError, match=r"training mode; .*eval mode"):
        exported_network(tmp_path / "teacher.pt2")


def test_a_program_of_two_inputs_is_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, one, other):
            return one + other

    torch.export.save(torch.export.export(Two(), (pictures(1, 3, 8, 8),) * 2), tmp_path / "teacher.pt2")
    with pytest.raises(ModelError, match="takes 2 inputs"):
        exported_network(tmp_path / "teacher.pt2")


# hostile files


def rewritten(file: Path, to: Path, change) -> Path:
    """A copy of an archive in which `change` was given each record: its name, and its bytes."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(to, "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, change(record.filename, source.read(record.filename)))
    return to


def graph(change):
    """Changes the graph of a program."""

    def of(name: str, content: bytes) -> bytes:
        if "/models/" not in name:
            return content
        program = json.loads(content)
        change(program["graph_module"]["graph"])
        return json.dumps(program).encode()

    return of


def pickled(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def sample_inputs(trap: Trap):
    return lambda name, content: pickled(((trap,), {})) if "sample_inputs" in name else content


def weights(trap: Trap):
    """Says that a weight is a pickle, and makes it one."""

    def of(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            payload = next(iter(config["config"].values()))
            payload["use_pickle"] = True
            return json.dumps(config).encode()
        return pickled(trap) if name.endswith("weight_0") else content

    return of


def target(name: str, *arguments: dict):
    """Has the first node call something else."""

    def change(graph: dict) -> None:
        graph["nodes"][0]["target"] = name
        if arguments:
            graph["nodes"][0]["inputs"] = list(arguments)

    return lambda trap: globals()["graph"](change)


def word(name: str, value: str) -> dict:
    return {"name": name, "arg": {"as_string": value}, "kind": 1}


def expression(trap: Trap):
    """Text that sympy would evaluate, as the size of a value."""

    def change(graph: dict) -> None:
        harm = f"__import__('os').mkdir({trap.mark!r})"
        for value in graph["sym_int_values"].values():
            value.setdefault("as_expr", {})["expr_str"] = harm
        for value in graph["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = harm

    return globals()["graph"](change)


REFUSED = [
    ("a weight that is a pickle", weights, "as a pickle"),
    ("a function of the system", target("torch.os.mkdir", word("", "x")), "torch.os.mkdir, which is no arithmetic"),
    ("a loader", target("torch.hub.load", word("", "x")), "torch.hub.load, which is no arithmetic"),
    ("an attribute", target("torch.ops.aten.__class__.mro"), "no arithmetic"),
    ("a way out", target("torch.ops.aten.conv2d.default.__globals__"), "no arithmetic"),
    ("a file", target("torch.ops.aten.from_file.default", word("filename", "x")), "more than arithmetic"),
    ("a picture", target("torch.ops.image.write_file.default"), "no arithmetic"),
    ("a private operator", target("torch.ops.aten._cslt_compress.default"), "no arithmetic"),
    ("control", target("torch.ops.higher_order.cond"), "no arithmetic"),
]
IGNORED = [("sample inputs that are a pickle", sample_inputs), ("sizes that are code", expression)]


@pytest.mark.parametrize(("done", "spoil", "says"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_program_that_says_more_than_arithmetic_is_refused(done, spoil, says, plain, tmp_path):
    file = rewritten(plain[1], tmp_path / "teacher.pt2", spoil(Trap(tmp_path)))
    with pytest.raises(ModelError, match=f"^teacher.path=.*{says}") as told:
        exported_network(file)
    assert "\n" not in str(told.value)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize(("done", "spoil"), IGNORED, ids=[row[0] for row in IGNORED])
@torch.no_grad()
def test_what_the_network_does_not_need_is_not_read(done, spoil, plain, tmp_path):
    file, images = rewritten(plain[1], tmp_path / "teacher.pt2", spoil(Trap(tmp_path))), pictures(1, 3, 32, 32)
    torch.testing.assert_close(exported_network(file).run(images), plain[0](images))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("spoil", [sample_inputs, weights, expression])
def test_the_traps_are_traps(spoil, plain, tmp_path):
    """The loader of torch springs them: it is not used (docs/adr/0011)."""
    file = rewritten(plain[1], tmp_path / "teacher.pt2", spoil(Trap(tmp_path)))
    with suppress(Exception):  # it is executed all the same
        torch.export.load(file)
    assert (tmp_path / MARK).exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: cut(content) if "/models/" in name else content,
        lambda name, content: cut(content) if name.endswith("weight_0") else content,
        lambda name, content: b"[" * 100_000 if "/models/" in name else content,
        lambda name, content: b"{}" if "config" in name else content,
        lambda name, content: content.replace(b'"major": 8', b'"major": 7'),
        lambda name, content: content.replace(b'"as_int": 3', b'"as_int": 300000000000'),
        lambda name, content: content.replace(b'"as_int": 3', b'"as_int": -3'),
    ],
)
def test_a_damaged_program_is_refused_in_one_line(change, plain, tmp_path):
    with pytest.raises(ModelError, match=r"^teacher\.path=") as told:
        exported_network(rewritten(plain[1], tmp_path / "teacher.pt2", change))
    assert "\n" not in str(told.value)


def test_no_program_at_all_is_refused(tmp_path):
    for content in (b"", b"no archive", b"PK\x05\x06" + b"\0" * 18):
        (tmp_path / "teacher.pt2").write_bytes(content)
        with pytest.raises(ModelError, match=r"^teacher\.path="):
            exported_network(tmp_path / "teacher.pt2")


def test_an_archive_that_grows_is_refused(plain, tmp_path):
    with zipfile.ZipFile(plain[1]) as source, zipfile.ZipFile(tmp_path / "x.pt2", "w", zipfile.ZIP_DEFLATED) as packed:
        for record in source.infolist():
            packed.writestr(record.filename, source.read(record.filename))
        packed.writestr("archive/data/weights/zeros", b"\0" * 10**6)
    with pytest.raises(ModelError, match="its records are compressed"):
        exported_network(tmp_path / "x.pt2")
