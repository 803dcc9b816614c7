"""Bytes predicted from shapes: METHOD's tables of Qwen2-Audio-7B, and real files of pico models."""

import json

import pytest
import torch

from sordino.checkpoint.reading import read_header
from sordino.formats import nf4
from sordino.layouts import tables
from sordino.measure.size import COMPANION
from sordino.models import loading, registry, saving, shapes
from tests.models.test_shapes import QWEN2_AUDIO_7B, config_of


def gigabytes(layout, **changes):
    model = shapes.model(QWEN2_AUDIO_7B, **changes)
    return tables.safetensors_bytes(tables.stored(model.tensors, layout)) / 1e9


@pytest.mark.parametrize(("layers", "printed"), [(32, "9.645"), (24, "8.649")])
def test_what_the_paper_published(layers, printed):
    """Embeddings and head in 32 bits and the adapter beside: 9.64 and 8.65 GB in its tables."""
    model = shapes.model(QWEN2_AUDIO_7B, decoder_layers=layers)
    data = tables.data_bytes(tables.stored(model.tensors, "reference"))
    data += tables.data_bytes(tables.stored(shapes.lora(model, 64), "float32"))
    assert f"{data / 1e9:.3f}" == printed


@pytest.mark.parametrize(("layers", "printed"), [(32, 4.953), (24, 4.118)])
def test_what_hubs_print_as_parameters(layers, printed):
    """Packed bytes and first scales; tables and second scales add 0.0002 B."""
    stored = tables.stored(shapes.model(QWEN2_AUDIO_7B, decoder_layers=layers).tensors, "reference")
    counted = {n: t for n, t in stored.items() if not COMPANION.search(n) or n.endswith("weight.absmax")}
    assert round(tables.stored_elements(counted) / 1e9, 3) == printed
    assert tables.stored_elements(stored) / 1e9 == pytest.approx(printed, abs=0.001)


@pytest.mark.parametrize(
    ("layout", "layers", "vocabulary", "printed"),
    [
        ("bf16", 32, None, "16.79"),
        ("nf4", 32, None, "6.24"),
        ("nf4", 24, None, "5.41"),
        ("nf4-e4-h8", 32, None, "4.68"),
        ("nf4-e4-h8", 24, None, "3.85"),
        ("nf4-e4-h8", 32, 48_000, "3.99"),
        ("nf4-e4-h8", 24, 48_000, "3.16"),
    ],
)
def test_what_we_store(layout, layers, vocabulary, printed):
    assert f"{gigabytes(layout, decoder_layers=layers, vocabulary=vocabulary):.2f}" == printed


def test_bits_of_nf4():
    stored = tables.nf4("weight", (11_008, 4096))
    maps = sum(t.bytes for n, t in stored.items() if "map" in n or "state" in n)
    assert 8 * (tables.data_bytes(stored) - maps) / (11_008 * 4096) == pytest.approx(4.127, abs=0.0005)


@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_bf16_files_to_the_byte(pico, pico_dir, family, tmp_path):
    speech = loading.load_checkpoint(str(pico_dir(family)), device="cpu", dtype=torch.bfloat16)
    speech.model.to(torch.bfloat16)
    saving.save(speech, tmp_path)
    stored = tables.stored(shapes.model(config_of(pico_dir(family))).tensors, "bf16")
    assert stored == read_header(tmp_path / "model.safetensors")
    assert tables.safetensors_bytes(stored) == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_nf4_files_to_one_in_a_thousand(pico_dir, family, tmp_path):
    nf4.write(str(pico_dir(family)), tmp_path)
    stored = tables.stored(shapes.model(config_of(pico_dir(family))).tensors, "nf4")
    real = read_header(tmp_path / "model.safetensors")
    assert stored.keys() == real.keys()
    assert {n: t for n, t in stored.items() if "state" not in n} == {n: t for n, t in real.items() if "state" not in n}
    size = (tmp_path / "model.safetensors").stat().st_size
    assert tables.safetensors_bytes(stored) == pytest.approx(size, rel=1e-3)


def test_float32_files_to_the_byte(pico_dir):
    stored = tables.stored(shapes.model(config_of(pico_dir("voxtral"))).tensors, "float32")
    assert tables.safetensors_bytes(stored) == (pico_dir("voxtral") / "model.safetensors").stat().st_size


def test_grouped_integers():
    stored = tables.grouped(4)("embed_tokens.weight", (10, 100))
    assert {name: (t.shape, t.bytes) for name, t in stored.items()} == {
        "embed_tokens.weight": ((10, 50), 500),
        "embed_tokens.weight.scales": ((10, 2), 40),
    }
    assert json.dumps([t.dtype for t in stored.values()]) == '["U8", "BF16"]'
