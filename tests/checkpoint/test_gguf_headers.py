"""Headers of GGUF files: against the gguf package's writer, and whatever can be wrong with them."""

from __future__ import annotations

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
    ("at", "value", "said"),
    [
        (0, b"GGML", "does not begin as a GGUF file does"),
        (4, b"\x09", "of version 9"),
        (16, b"\xff", "is truncated or damaged"),
        (24, b"\xff" * 8, "is truncated or damaged"),
    ],
)
def test_damage_is_named(file: Path, at: int, value: bytes, said: str) -> None:
    whole = bytearray(file.read_bytes())
    whole[at : at + len(value)] = value
    file.write_bytes(whole)
    with pytest.raises(ArtifactError, match=said):
        read_header(file)


def test_an_unknown_type_is_named(file: Path) -> None:
    whole = file.read_bytes()
    name = whole.index(b"y.weight") + len(b"y.weight")
    kind = name + 4 + 2 * 8
    file.write_bytes(whole[:kind] + b"\x63" + whole[kind + 1 :])
    with pytest.raises(ArtifactError, match=r"'y\.weight' is of type 99, which is not known here"):
        read_header(file)
