"""Headers of GGUF files: against the gguf package's writer, and whatever can be wrong with them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from sordino.checkpoint.gguf import TYPES, bytes_of, read_header
from sordino.errors import ArtifactError

WEIGHT = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(7)
    writer.add_layer_norm_rms_eps(0.5)
    writer.add_tokenizer_model("none")
    writer.add_token_list(["a", "ß"])
    writer.add_token_types([1, 2])
    writer.add_add_bos_token(False)
    writer.add_tensor("x.weight", WEIGHT)
    packed = gguf.quants.quantize(WEIGHT, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("y.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_the_package_wrote(file: Path) -> None:
    header = read_header(file)
    assert header.keys["general.architecture"] == "qwen2"
    assert header.keys["qwen2.block_count"] == 7
    assert header.keys["qwen2.attention.layer_norm_rms_epsilon"] == 0.5
    assert header.keys["tokenizer.ggml.tokens"] == 2
    assert header.keys["tokenizer.ggml.add_bos_token"] is False
    assert {n: (t.dtype, t.shape, t.bytes) for n, t in header.tensors.items()} == {
        "x.weight": ("F32", (3, 64), 768),
        "y.weight": ("Q8_0", (3, 64), 204),
    }
    at = header.tensors["x.weight"].start
    assert file.read_bytes()[at : at + 768] == WEIGHT.tobytes()


def test_the_blocks_are_those_of_the_package() -> None:
    for number, (name, weights, size) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (weights, size)
    assert bytes_of("Q4_K", (2, 3, 512)) == 2 * 3 * 2 * 144


def test_every_cut_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    last = read_header(file).tensors["y.weight"]
    for length in range(0, last.start + last.bytes, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"a\.gguf is truncated or damaged"):
            read_header(file)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGML", "does not begin as a GGUF file does"),
        (4, b"\x09", "of version 9"),
        (16, b"\xff", "is truncated or damaged"),
        (24, b"\xff" * 8, "is truncated or damaged"),
    ],
)
def test_damage_is_named(file: Path, at: int, value: bytes, message: str) -> None:
    whole = bytearray(file.read_bytes())
    whole[at : at + len(value)] = value
    file.write_bytes(whole)
    with pytest.raises(ArtifactError, match=message):
        read_header(file)


def test_an_unknown_type_is_named(file: Path) -> None:
    whole = file.read_bytes()
    name = whole.index(b"y.weight") + len(b"y.weight")
    kind = name + 4 + 2 * 8
    file.write_bytes(whole[:kind] + b"\x63" + whole[kind + 1 :])
    with pytest.raises(ArtifactError, match=r"'y\.weight' is of type 99, which is not known here"):
        read_header(file)


def crafted(path: Path, tensors: int, keys: int, body: bytes) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body)
    return path


@pytest.mark.parametrize(
    ("tensors", "keys", "body", "message"),
    [
        (0, 1, struct.pack("<Q", 2**60), "a text of"),
        (0, 2**60, b"", "it ends inside"),
        (2**60, 0, b"", "it ends inside"),
        (0, 1, struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 5000, "an array of type 9"),
        (0, 1, struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", 8, 2**60), "it ends inside"),
        (0, 1, struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", 4, 2**61), "it ends inside"),
        (1, 0, struct.pack("<Q1sI", 1, b"t", 2**31), "a tensor of 2147483648 dimensions"),
        (0, 1, struct.pack("<Q2sI", 2, b"\xff\xfe", 4), "can't decode"),
    ],
)
def test_headers_that_promise_without_end(tmp_path: Path, tensors: int, keys: int, body: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_header(crafted(tmp_path / "a.gguf", tensors, keys, body))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a directory"):
        read_header(tmp_path)
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    with pytest.raises(ArtifactError, match="leads back to itself"):
        read_header(tmp_path / "loop.gguf")
