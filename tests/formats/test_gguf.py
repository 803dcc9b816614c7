"""What GGUF export writes, read back without llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sordino.checkpoint.gguf import read_header
from sordino.errors import ArtifactError, FamilyError
from sordino.formats import gguf
from sordino.formats import registry as formats
from sordino.layouts import tables
from sordino.measure.audit import audit
from sordino.measure.size import measure
from sordino.models import llama_cpp, loading, registry, shapes
from sordino.models.speech import SpeechModel
from tests.formats.ggufs import transformers_order, unpacked
from tests.stages.runs import Made, refusal

FAMILIES = [name for name in registry.FAMILIES if registry.get(name).tensors.gguf]
# half a step between two values of a block, as a part of the block's largest value; Q4_0's largest may lie a step off
ERROR = {"gguf-q8_0": 0.5 / 127 + 1e-3, "gguf-q4_0": 1 / 8 + 1e-3}


@pytest.fixture(scope="module")
def written(pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def write(family: str, name: str) -> Path:
        if (family, name) not in made:
            made[family, name] = tmp_path_factory.mktemp(f"{family}-{name}")
            formats.get(name).write(str(pico_dir(family)), made[family, name])
        return made[family, name]

    return write


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(ERROR))
def test_weights_come_back_within_the_formats_error(
    written: Callable[[str, str], Path], pico: Callable[[str], SpeechModel], family: str, name: str
) -> None:
    directory, speech = written(family, name), pico(family)
    found = unpacked(directory)
    live = dict(speech.model.named_parameters())
    seen = 0
    for stored, weight in found.items():
        parts = speech.family.parts
        theirs = {"token_embd.weight": f"{parts['embeddings']}.weight", "output.weight": f"{parts['head']}.weight"}
        if stored in theirs:
            real = live[theirs[stored]]
        elif stored.startswith("blk.2.attn_"):
            part = stored.split(".")[2].removeprefix("attn_")
            inner = {
                "norm": "input_layernorm", "output": "self_attn.o_proj", "q_norm": "self_attn.q_norm",
                "k_norm": "self_attn.k_norm",
            }.get(part, f"self_attn.{part}_proj")  # fmt: skip
            real = live[f"{speech.family.stacks['decoder'].path}.2.{inner}.{stored.rsplit('.', 1)[1]}"]
        else:
            continue
        seen += 1
        most = real.abs().max() if real.ndim == 1 else real.reshape(*real.shape[:-1], -1, 32).abs().amax(-1, True)
        error = (transformers_order(stored, weight, speech) - real.detach()).abs()
        error = error if real.ndim == 1 else error.reshape(*real.shape[:-1], -1, 32)
        assert (error <= most * (0 if real.ndim == 1 else ERROR[name])).all(), stored
    assert seen == {"qwen2_audio": 10, "qwen2_5_omni": 10, "qwen3_asr": 8}.get(family, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_projector_are_in_bfloat16_and_nothing_else_is_beside_them(
    written: Callable[[str, str], Path], pico_dir: Callable[[str], Path], family: str
) -> None:
    whole = load_file(pico_dir(family) / "model.safetensors")
    kept = load_file(written(family, "gguf-q8_0") / "encoder.safetensors")
    inside = (registry.get(family).parts["decoder"], registry.get(family).parts["head"])
    assert kept.keys() == {n for n in whole if not registry.get(family).tensors.live_name(n).startswith(inside)}
    assert all(torch.equal(kept[name], whole[name].to(torch.bfloat16)) for name in kept)


def test_keys_and_config_say_what_is_there(written: Callable[[str, str], Path]) -> None:
    directory = written("qwen2_audio", "gguf-q4_0")
    keys = read_header(directory / "decoder.gguf").keys
    assert keys["general.architecture"] == "qwen2"
    assert keys["qwen2.block_count"] == 4
    assert keys["qwen2.vocab_size"] == 262
    assert keys["qwen2.attention.head_count_kv"] == 2
    assert keys["tokenizer.ggml.model"] == "none"
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "gguf",
        "file": "decoder.gguf",
        "layout": "gguf-q4_0",
    }
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    assert {file.name for file in directory.iterdir()} == {
        "decoder.gguf", "encoder.safetensors", "config.json", "generation_config.json", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list(ERROR))
def test_sizes_are_as_planned_and_nothing_is_wasted(
    written: Callable[[str, str], Path],
    pico_dir: Callable[[str], Path],
    pico: Callable[[str], SpeechModel],
    family: str,
    name: str,
) -> None:
    directory = written(family, name)
    model = shapes.model(registry.read_config(str(pico_dir(family))))
    files = [directory / "encoder.safetensors", directory / "decoder.gguf"]
    own_keys = registry.get(family).tensors.gguf.keys(pico(family).model.config.get_text_config())
    assert tables.disk_bytes(tables.stored(model.tensors, name)) == pytest.approx(
        sum(file.stat().st_size for file in files), abs=1024 if own_keys else 64
    )
    found = audit(directory)
    assert not found.findings
    assert found.files == ("encoder.safetensors", "decoder.gguf")
    assert found.parameters == model.parameters == audit(pico_dir(family)).parameters
    assert {part: share.parameters for part, share in found.parts.items()} == {
        part: share.parameters for part, share in audit(pico_dir(family)).parts.items()
    }
    assert found.torch_save_bytes is None
    bits = 8 * found.storage["Q8_0"].bytes / (found.storage["Q8_0"].parameters or 1)
    assert bits == 8.5
    assert measure(directory).bytes_by_dtype["F32"] == sum(
        4 * t.elements for t in read_header(files[1]).tensors.values() if len(t.shape) == 1
    )
    assert audit(files[1]).parameters == model.parameters - sum(t.numel() for t in load_file(files[0]).values())


def test_waste_is_still_seen(
    written: Callable[[str, str], Path], pico_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(written("qwen2_audio", "gguf-q8_0"), model)
    shutil.copy(model / "decoder.gguf", model / "again.gguf")
    assert [finding.kind for finding in audit(model).findings] == ["duplicate weights"]
    (model / "decoder.gguf").unlink()
    with pytest.raises(ArtifactError, match=r"decoder\.gguf is missing, and config\.json needs it"):
        audit(model)
    plain = tmp_path / "plain"
    shutil.copytree(pico_dir("qwen2_audio"), plain)
    shutil.copy(model / "again.gguf", plain / "decoder.gguf")  # no config names it
    assert "duplicate weights" in [finding.kind for finding in audit(plain).findings]


def test_writing_twice_gives_the_same_bytes(
    written: Callable[[str, str], Path], pico_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("decoder.gguf", "encoder-00001-of-00002.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(b"of a write that was cut short")
    formats.get("gguf-q4_0").write(str(pico_dir("qwen2_audio")), tmp_path)
    for file in written("qwen2_audio", "gguf-q4_0").iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_large_matrices_are_rounded_in_pieces(
    written: Callable[[str, str], Path],
    pico_dir: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gguf, "CHUNK_WEIGHTS", 64 * 7)
    formats.get("gguf-q4_0").write(str(pico_dir("qwen2_audio")), tmp_path)
    expected = (written("qwen2_audio", "gguf-q4_0") / "decoder.gguf").read_bytes()
    assert (tmp_path / "decoder.gguf").read_bytes() == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantized already"),
        ({"text_config": {"hidden_act": "gelu"}}, "has the activation gelu, which GGUF export does not write"),
        ({"text_config": {"use_sliding_window": True}}, "has sliding windows"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}},
            r"has scaled rotary positions \(linear\)",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    pico_dir: Callable[[str], Path], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(pico_dir("qwen2_audio"), model)
    config = json.loads((model / "config.json").read_text())
    for key, value in change.items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    (model / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FamilyError, match=said):
        formats.get("gguf-q8_0").write(str(model), out)
    assert not list(out.iterdir())


def test_strange_and_spoilt_weights_are_refused(pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(pico_dir("qwen2_audio"), model)
    tensors = load_file(model / "model.safetensors")
    save_file(
        tensors | {"language_model.model.layers.0.self_attn.q_norm.weight": torch.ones(4)}, model / "model.safetensors"
    )
    with pytest.raises(FamilyError, match=r"weights of layers that its config\.json does not count, .*q_norm\.weight"):
        formats.get("gguf-q8_0").write(str(model), tmp_path)
    weight = tensors["language_model.model.layers.1.mlp.up_proj.weight"].clone()
    weight[3, 5] = np.nan
    save_file(tensors | {"language_model.model.layers.1.mlp.up_proj.weight": weight}, model / "model.safetensors")
    with pytest.raises(FamilyError, match=r"layers\.1\.mlp\.up_proj\.weight' hold NaN or infinity"):
        formats.get("gguf-q8_0").write(str(model), tmp_path)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is truncated or damaged"):
        formats.get("gguf-q8_0").write(str(model), tmp_path)


def test_without_llama_cpp_only_k_types_are_refused(
    pico_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    monkeypatch.setattr(llama_cpp.Library, "_one", None)
    said = r"gguf-q4_k_m is rounded by .* llama-cpp-python, which is not installed.*export gguf-q8_0 or gguf-q4_0"
    with pytest.raises(FamilyError, match=said):
        formats.get("gguf-q4_k_m").write(str(pico_dir("qwen2_audio")), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FamilyError, match=said):
        formats.require("gguf-q4_k_m")
    for name in ("gguf-q8_0", "gguf-q4_0"):
        formats.require(name)
        formats.get(name).write(str(pico_dir("qwen2_audio")), tmp_path)
        with pytest.raises(FamilyError, match=r"need llama-cpp-python.*pip install '.\[gguf\]'"):
            formats.require_to_translate(name)


def test_stock_loading_does_not_make_up_the_decoder(written: Callable[[str, str], Path]) -> None:
    """transformers would fill what a file named model.safetensors lacks with random numbers, and go on."""
    refused = r"no file named model\.safetensors|for this kind of AutoModel"
    for family in FAMILIES:
        directory = str(written(family, "gguf-q8_0"))
        for model_class in (getattr(transformers, registry.get(family).model_class), transformers.AutoModel):
            with pytest.raises((OSError, ValueError), match=refused):
                model_class.from_pretrained(directory)


def test_an_export_of_before_is_weighed_as_it_was(written: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Encoder and projector were called model.safetensors once."""
    old = tmp_path / "old"
    shutil.copytree(written("qwen2_audio", "gguf-q8_0"), old)
    (old / "encoder.safetensors").rename(old / "model.safetensors")
    assert audit(old).files == ("model.safetensors", "decoder.gguf")
    assert audit(old).parameters == audit(written("qwen2_audio", "gguf-q8_0")).parameters


@pytest.mark.parametrize("name", ["../decoder.gguf", "/decoder.gguf", "decoder.bin", None, ["decoder.gguf"], ""])
def test_a_decoder_outside_of_the_model_is_refused(
    written: Callable[[str, str], Path], tmp_path: Path, name: object
) -> None:
    model = tmp_path / "model"
    shutil.copytree(written("qwen2_audio", "gguf-q8_0"), model)
    shutil.copy(model / "decoder.gguf", tmp_path / "decoder.gguf")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"]["file"] = name
    (model / "config.json").write_text(json.dumps(config))
    for look in (audit, lambda path: loading.open_model(str(path))):
        with pytest.raises((ArtifactError, FamilyError), match=r"config\.json: quantization_config\.file cannot be"):
            look(model)


def test_a_recipe_is_refused_before_it_runs_where_llama_cpp_is_missing(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    monkeypatch.setattr(llama_cpp.Library, "_one", None)
    file = made.recipe(tmp_path, {"export": {"formats": ["gguf-q8_0"]}})
    message = refusal(capsys, "run", file)
    assert "need llama-cpp-python, which is not installed" in message
    assert "leave gguf-q8_0 out of translate.systems" in message
    assert not (tmp_path / "runs" / "run" / "10-data").exists()


def test_it_is_no_model_to_train(written: Callable[[str, str], Path]) -> None:
    with pytest.raises(FamilyError, match=r"holds a decoder for llama\.cpp.*Train, rank, prune, merge or export"):
        loading.load_checkpoint(str(written("qwen2_audio", "gguf-q8_0")), device="cpu")
