"""A decoder's names and types in GGUF: against the gguf package's table, and llama.cpp's rules by hand."""

import gguf
import pytest

from sordino.layouts import gguf as layout
from sordino.layouts import tables
from sordino.models import shapes
from sordino.models.qwen2_audio import QWEN2_AUDIO
from tests.models.test_shapes import QWEN2_AUDIO_7B


def test_names_are_those_of_the_package():
    config = QWEN2_AUDIO_7B
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 32)
    seen = 0
    for tensor in shapes.model(config).tensors:
        name = tensor.gguf
        if not tensor.name.startswith("language_model."):
            assert name is None
            continue
        theirs = table.get_name(tensor.name.removeprefix("language_model."), try_suffixes=(".weight", ".bias"))
        assert name == theirs
        assert layout.OURS.match(name)
        seen += 1
    assert seen == 3 + 32 * 12
    assert QWEN2_AUDIO.gguf_name("model.language_model.layers.3.self_attn.q_proj.bias") == "blk.3.attn_q.bias"
    assert QWEN2_AUDIO.gguf_name("language_model.model.layers.3.self_attn.q_norm.weight") is None


def named(layers, row=512):
    matrices = ("attn_q", "attn_v", "ffn_down")
    shapes = {f"blk.{i}.{name}.weight": (row, row) for i in range(layers) for name in matrices}
    return shapes | {"token_embd.weight": (9, row), "output.weight": (9, row), "output_norm.weight": (row,)}


def test_q4_k_m_gives_more_bits_where_llama_cpp_does():
    types = layout.types(named(24), "gguf-q4_k_m")
    more = [i for i in range(24) if types[f"blk.{i}.attn_v.weight"] == ("Q6_K", "Q6_K")]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert more == [i for i in range(24) if types[f"blk.{i}.ffn_down.weight"][0] == "Q6_K"]
    assert {types[f"blk.{i}.attn_q.weight"] for i in range(24)} == {("Q4_K", "Q4_K")}
    assert types["token_embd.weight"] == ("Q4_K", "Q4_K")
    assert types["output.weight"] == ("Q6_K", "Q6_K")
    assert types["output_norm.weight"] == ("F32", "F32")


def test_a_tied_embedding_is_the_head():
    tied = {name: shape for name, shape in named(2).items() if name != "output.weight"}
    assert layout.types(tied, "gguf-q4_k_m")["token_embd.weight"][0] == "Q6_K"
    assert layout.types(tied, "gguf-q4_0")["token_embd.weight"][0] == "Q8_0"
    assert layout.types(named(2), "gguf-q4_0")["token_embd.weight"][0] == "Q4_0"


@pytest.mark.parametrize(
    ("layout_name", "row", "kinds"),
    [
        ("gguf-q4_k_m", 96, {("Q5_0", "Q4_K"), ("Q8_0", "Q6_K"), ("F32", "F32")}),
        ("gguf-q4_k_m", 40, {("F16", "Q4_K"), ("F16", "Q6_K"), ("F32", "F32")}),
        ("gguf-q8_0", 40, {("F16", "Q8_0"), ("F32", "F32")}),
        ("gguf-q4_0", 96, {("Q4_0", "Q4_0"), ("Q8_0", "Q8_0"), ("F32", "F32")}),
    ],
)
def test_rows_that_are_no_whole_blocks_fall_back(layout_name, row, kinds):
    assert set(layout.types(named(3, row), layout_name).values()) == kinds


def test_the_papers_model():
    """24 layers of Qwen2-Audio-7B: Q8_0 is 8.5 bits a weight, Q4_0 4.5, Q4_K_M about 4.85; 1.28 GB is the encoder."""
    tensors = shapes.model(QWEN2_AUDIO_7B, decoder_layers=24).tensors
    decoder = [t for t in tensors if t.gguf]
    weights = shapes.count(decoder)
    bits = {n: 8 * tables.data_bytes(layout.stored(decoder, n)) / weights for n in layout.FORMATS}
    assert bits["gguf-q8_0"] == pytest.approx(8.5, abs=0.01)
    assert bits["gguf-q4_0"] == pytest.approx(4.5 + 4 * 156_032 * 4096 / weights, abs=0.01)
    assert 4.8 < bits["gguf-q4_k_m"] < 5.0
    rest = 2 * (shapes.count(tensors) - weights)
    for name in layout.FORMATS:
        size = tables.disk_bytes(tables.stored(tensors, name))
        assert size == pytest.approx(bits[name] * weights / 8 + rest, rel=1e-4)
