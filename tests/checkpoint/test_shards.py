"""Shards: what is written is what the safetensors library writes and reads, and what is damaged is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sordino.checkpoint import reading, writing
from sordino.checkpoint.reading import INDEX, TYPES, Checkpoint
from sordino.checkpoint.writing import Planned, Writer
from sordino.errors import ArtifactError


def some() -> dict[str, torch.Tensor]:
    """Tensors of many types and odd sizes, an empty one and a scalar among them."""
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(7, 5).bfloat16(),
        "a.weight": torch.randn(4, 3),
        "a.häß": torch.arange(11, dtype=torch.uint8),
        "ids": torch.arange(6).reshape(2, 3),
        "scale": torch.tensor(0.5),
        "half": torch.randn(9).half(),
        "none": torch.empty(0, 4),
        "codes": torch.randint(-9, 9, (3, 3), dtype=torch.int32),
        "flag": torch.tensor([True, False, True]),
    }


def planned(tensors: dict[str, torch.Tensor]) -> dict[str, Planned]:
    names = {torch_name: name for name, (_, torch_name) in TYPES.items()}
    return {n: Planned(names[str(t.dtype).removeprefix("torch.")], tuple(t.shape)) for n, t in tensors.items()}


def write(directory: Path, tensors: dict[str, torch.Tensor], **options: Any) -> Checkpoint:
    directory.mkdir(exist_ok=True)
    with Writer(directory, planned(tensors), **options) as out:
        for name in reversed(list(tensors)):  # any order
            out.write(name, tensors[name])
    return Checkpoint.open(directory)


def test_one_file_is_the_safetensors_librarys_to_the_byte(tmp_path: Path) -> None:
    write(tmp_path, some())
    save_file(some(), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert [p.name for p in tmp_path.glob("*index*")] == []


@pytest.mark.parametrize("most", [1, 100, 200])
def test_shards_hold_the_same_and_have_an_index(tmp_path: Path, most: int) -> None:
    stored = write(tmp_path, some(), shard_bytes=most)
    assert len(stored.files) > 1
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == stored.bytes == sum(t.nbytes for t in some().values())
    assert index["weight_map"] == {name: file.name for name, file in sorted(stored.file_of.items())}
    found: dict[str, torch.Tensor] = {}
    for file in stored.files:
        inside = load_file(file)
        assert len(inside) == 1 or sum(t.nbytes for t in inside.values()) <= most
        found |= inside
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert found.keys() == some().keys()
    for name, tensor in some().items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor)
        assert stored.read(name).equal(tensor)
    again = write(tmp_path, some(), shard_bytes=10**6)  # over the shards: none of them is left
    assert [file.name for file in again.files] == ["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tensor_is_read_by_rows_and_in_chunks(tmp_path: Path) -> None:
    stored = write(tmp_path, some())
    weight = some()["b.weight"]
    assert stored.read("b.weight", (2, 5)).equal(weight[2:5])
    assert stored.read("b.weight", (7, 7)).shape == (0, 5)
    pieces = list(stored.chunks("b.weight", 16))
    assert [len(piece) for piece in pieces] == [16, 16, 16, 16, 6]
    assert b"".join(pieces) == weight.view(torch.uint8).numpy().tobytes()
    with pytest.raises(ValueError, match="rows 5 to 8 of 7"):
        stored.read("b.weight", (5, 8))
    (tmp_path / "x").mkdir()
    with Writer(tmp_path / "x", {"x": Planned("BF16", (7, 5))}) as out:
        out.write("x", (weight[i : i + 2] for i in range(0, 7, 2)))
    assert Checkpoint.open(tmp_path / "x").read("x").equal(weight)


def test_copies_are_byte_for_byte_or_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = some() | {"long": torch.randn(1000)}
    stored = write(tmp_path, tensors)
    plan = planned(tensors) | {"a.weight": Planned("BF16", (4, 3)), "long": Planned("BF16", (1000,))}
    monkeypatch.setattr(writing, "CHUNK_BYTES", 64)

    def copy(to: Path) -> bytes:
        to.mkdir()
        with Writer(to, plan) as out:
            for name in tensors:
                out.copy(name, stored, name)
        return (to / "model.safetensors").read_bytes()

    by_the_kernel = copy(tmp_path / "one")
    found = load_file(tmp_path / "one" / "model.safetensors")
    for name, tensor in tensors.items():
        assert found[name].equal(tensor.bfloat16() if plan[name].dtype == "BF16" else tensor), name

    def refuses(*_: Any) -> int:
        raise OSError("not between these file systems")

    monkeypatch.setattr("os.copy_file_range", refuses)
    assert copy(tmp_path / "other") == by_the_kernel


def test_a_vector_of_unknown_length_comes_last(tmp_path: Path) -> None:
    state = torch.tensor(list(b'{"quant_type": "nf4"}'), dtype=torch.uint8)
    with Writer(tmp_path, {"a": Planned("U8", None), "b": Planned("F32", (3,)), "c": Planned("U8", None)}) as out:
        out.write("c", state[:7])
        out.write("a", state)
        out.write("b", torch.ones(3))
    found = load_file(tmp_path / "model.safetensors")
    assert found["a"].equal(state)
    assert found["b"].equal(torch.ones(3))
    assert found["c"].equal(state[:7])
    Checkpoint.open(tmp_path)


def test_what_is_not_as_planned_is_refused(tmp_path: Path) -> None:
    plan = {"x": Planned("F32", (3, 2)), "y": Planned("I32", (1,))}
    stored = write(tmp_path, {"x": torch.ones(2, 3), "y": torch.ones(1)})
    (tmp_path / "out").mkdir()

    def attempt(action: Callable[[Writer], object]) -> None:
        with Writer(tmp_path / "out", plan) as out:
            action(out)

    for wrong in (torch.ones(3, 2).half(), torch.ones(2, 3), torch.ones(4, 2), torch.ones(2, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="x is planned"):
            attempt(lambda out, wrong=wrong: out.write("x", wrong))  # type: ignore[misc]
    with pytest.raises(ValueError, match="x is planned"):
        attempt(lambda out: out.copy("x", stored, "x"))
    with pytest.raises(ValueError, match="cannot become I32"):
        attempt(lambda out: out.copy("y", stored, "y"))
    with pytest.raises(ValueError, match="2 planned tensors were not written, x among them"):
        attempt(lambda _: None)
    with pytest.raises(ValueError, match="written twice"):
        attempt(lambda out: [out.write("x", torch.ones(3, 2)) for _ in range(2)])
    with pytest.raises(ArtifactError):  # what a block that failed leaves does not pass for a model
        Checkpoint.open(tmp_path / "out")


def test_a_full_disk_is_seen_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has room for .* GB, and the weights take 4096000\.00 GB"):
        Writer(tmp_path, {"x": Planned("F32", (32_000, 32_000, 1_000_000))})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    write(directory, {f"layers.{i}.weight": torch.full((16, 16), float(i)) for i in range(6)}, shard_bytes=2048)
    assert len(Checkpoint.open(directory).files) == 3
    return directory


SECOND = "model-00002-of-00003.safetensors"


def truncated(directory: Path) -> None:
    file = directory / SECOND
    file.write_bytes(file.read_bytes()[:-1])


def longer(directory: Path) -> None:
    with (directory / SECOND).open("ab") as out:
        out.write(b"x")


def huge_header(directory: Path) -> None:
    file = directory / SECOND
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def edited(old: str, new: str) -> Callable[[Path], None]:
    """Damage in the header that leaves the length of everything as it is."""
    assert len(old) == len(new)

    def damage(directory: Path) -> None:
        data = (directory / SECOND).read_bytes()
        assert data.count(old.encode()) == 1
        (directory / SECOND).write_bytes(data.replace(old.encode(), new.encode()))

    return damage


def swapped(directory: Path) -> None:
    shutil.copy(directory / SECOND.replace("2-", "1-", 1), directory / SECOND)


def lost(directory: Path) -> None:
    (directory / SECOND).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "bytes where its header describes"),
    "longer": (longer, "bytes where its header describes"),
    "huge header": (huge_header, "its header does not fit"),
    "lost": (lost, f"is missing, and {INDEX} needs it"),
    "of another shard": (swapped, "lacks 'layers.2.weight'|holds 'layers.0.weight'"),
    "renamed": (edited("layers.3", "layers.9"), "lacks 'layers.3.weight'"),
    "twice in a header": (edited("layers.3", "layers.2"), "stands there twice"),
    "overlap": (edited("[1024,2048]", "[1023,2047]"), "does not begin where the tensor before it ends"),
    "hole": (edited("[0,1024]", "[0,1020]"), "bytes, which its type and shape do not make"),
    "shape": (edited('[16,16],"data_offsets":[0', '[16,17],"data_offsets":[0'), "type and shape do not make"),
    "negative": (edited('[16,16],"data_offsets":[0', '[-4,-8],"data_offsets":[0'), "is no size"),
    "type": (edited('"F32","shape":[16,16],"data_offsets":[0', '"F31","shape":[16,16],"data_offsets":[0'), "unknown"),
    "no JSON": (edited('{"__meta', '{"__meta'.replace("{", "[")), "not that of a safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_refused_by_name(sharded: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    directory = tmp_path / "model"
    shutil.copytree(sharded, directory)
    damage(directory)
    with pytest.raises(ArtifactError, match=rf"{SECOND}.*(?:{message})"):
        Checkpoint.open(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"weight_map": {"a": "' + "x" * 10**6 + '/y"}}', "is no file beside it"),
        ("[]", "has no weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "is no file beside it"),
        ('{"weight_map": {"a": 3}}', "is no file beside it"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ArtifactError, match=message):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"x": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    (tmp_path / INDEX).write_text('{"weight_map": {"x": "one.safetensors"}}')
    assert Checkpoint.open(tmp_path).files == (tmp_path / "one.safetensors",)
    (tmp_path / INDEX).write_text('{"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}')
    with pytest.raises(ArtifactError, match=r"two\.safetensors (?:holds 'x'|lacks 'y')"):
        Checkpoint.open(tmp_path)
    with pytest.raises(ArtifactError, match=r"two\.safetensors stores 'x' a second time"):
        reading.read_headers([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)


def headed(file: Path, text: str, data: bytes = b"") -> Path:
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000 + "]" * 200_000, "not that of a safetensors file"),
        ("[]", "not that of a safetensors file"),
        ("null", "not that of a safetensors file"),
        ('{"a": 5}', "not that of a safetensors file"),
        ('{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}', "a shape or place is no size"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}', "not that of a safetensors file"),
        ('{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "of an unknown type"),
        ('{"a": {"dtype": "F32", "shape": [' + "1" * 5000 + '], "data_offsets": [0, 4]}}', "not that of a safetensors"),
        ('{"a\\u001b[2J": {"dtype": "X", "shape": [], "data_offsets": [0, 4]}}', r"'a\\x1b\[2J' is of an unknown type"),
    ],
)
def test_headers_that_describe_nothing(tmp_path: Path, text: str, message: str) -> None:
    headed(tmp_path / "model.safetensors", text, bytes(4))
    with pytest.raises(ArtifactError, match=message):
        Checkpoint.open(tmp_path)


def test_a_shape_of_a_hundred_thousand_large_sizes_is_not_multiplied(tmp_path: Path) -> None:
    shape = ", ".join([str(2**62)] * 100_000)
    text = f'{{"a": {{"dtype": "F32", "shape": [{shape}], "data_offsets": [0, 4]}}}}'
    with pytest.raises(ArtifactError, match="the shape or place of 'a' is no size"):
        reading.read_header(headed(tmp_path / "model.safetensors", text, bytes(4)))


def test_weights_that_are_no_file(tmp_path: Path) -> None:
    for name in ("model.safetensors", INDEX):
        place = tmp_path / name.replace(".", "-")
        (place / name).mkdir(parents=True)
        with pytest.raises(ArtifactError, match=f"{name} is a directory"):
            Checkpoint.open(place)
        (place / name).rmdir()
        (place / name).symlink_to(place / name)
        with pytest.raises(ArtifactError, match=f"{name}: this is a link that leads back to itself"):
            Checkpoint.open(place)
        (place / name).unlink()
        (place / name).symlink_to(place / "gone")
        with pytest.raises(ArtifactError, match=f"there is no file .*{name}"):
            Checkpoint.open(place)
