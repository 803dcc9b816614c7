"""Sizes of checkpoints that transformers, bitsandbytes and peft saved, against arithmetic by hand."""

import json
import math
import struct

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from sordino.checkpoint.reading import Tensor, read_header
from sordino.errors import ArtifactError
from sordino.measure.size import Size, logical_parameters, measure
from sordino.models.parts import part_of

H, FFN, VOCABULARY = 64, 128, 300  # decoder
D, ENCODER_FFN, MELS, POSITIONS = 32, 64, 16, 100  # encoder
ATTENTION, MLP, NORMS = 4 * H * H + 3 * H, 3 * H * FFN, 2 * H  # q, k, v carry biases
ENCODER_LAYER = 4 * D * D + 3 * D + 2 * D * ENCODER_FFN + ENCODER_FFN + D + 4 * D  # k has no bias
CONVOLUTIONS = 3 * MELS * D + D + 3 * D * D + D
ENCODER = CONVOLUTIONS + POSITIONS * D + 2 * D + ENCODER_LAYER
PROJECTOR = D * H + H
EMBEDDING = VOCABULARY * H
TOTAL = ENCODER + PROJECTOR + 2 * EMBEDDING + 2 * (ATTENTION + MLP + NORMS) + H
# What bitsandbytes packs when lm_head is skipped: every other linear weight, 64 weights to a scale.
LINEAR = [D * D] * 4 + [D * ENCODER_FFN] * 2 + [D * H] + 2 * ([H * H] * 4 + [H * FFN] * 3)


def config():
    return Qwen2AudioConfig(
        audio_config={
            "d_model": D, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": ENCODER_FFN,
            "num_mel_bins": MELS, "max_source_positions": POSITIONS,
        },
        text_config={
            "model_type": "qwen2", "hidden_size": H, "intermediate_size": FFN, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        },
        audio_token_index=VOCABULARY - 1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """bf16, the same in shards, nf4 with and without double quantization, int8, and a LoRA adapter."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config()).to(torch.bfloat16)
    model.save_pretrained(root / "bf16")
    model.save_pretrained(root / "shards", max_shard_size="100KB")
    bits = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "nf4_single": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "int8": {"load_in_8bit": True},
    }
    for name, options in bits.items():
        quantized = Qwen2AudioForConditionalGeneration.from_pretrained(
            root / "bf16",
            dtype=torch.bfloat16,
            quantization_config=BitsAndBytesConfig(**options, llm_int8_skip_modules=["lm_head"]),
        )
        quantized.save_pretrained(root / name)
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.q_proj")
    get_peft_model(model.float(), lora).save_pretrained(root / "adapter")
    return root


def test_bf16(checkpoints):
    size = measure(checkpoints / "bf16")
    assert size.stored_elements == size.logical_parameters == TOTAL
    assert size.bytes_by_dtype == {"BF16": 2 * TOTAL}
    assert size.bytes_by_part == {
        "audio_encoder": 2 * ENCODER,
        "projector": 2 * PROJECTOR,
        "embedding": 2 * EMBEDDING,
        "head": 2 * EMBEDDING,
        "decoder": 2 * 2 * (ATTENTION + MLP + NORMS),
        "other": 2 * H,  # the final norm
    }
    file = checkpoints / "bf16" / "model.safetensors"
    assert size.files == (file.name,)
    assert size.weights_bytes == file.stat().st_size
    assert size.directory_bytes == sum(each.stat().st_size for each in file.parent.iterdir())
    assert Size.from_json(json.loads(json.dumps(size.to_json()))) == size


def test_shards_count_like_one_file_and_a_lost_one_is_missed(checkpoints, tmp_path):
    size, whole = measure(checkpoints / "shards"), measure(checkpoints / "bf16")
    assert len(size.files) > 1
    assert (size.stored_elements, size.bytes_by_part) == (whole.stored_elements, whole.bytes_by_part)
    assert size.weights_bytes == sum((checkpoints / "shards" / name).stat().st_size for name in size.files)
    for file in (checkpoints / "shards").iterdir():
        if file.name != size.files[1]:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=f"{size.files[1]} is missing"):
        measure(tmp_path)


@pytest.mark.parametrize("name", ["nf4", "nf4_single"])
def test_nf4_counts_two_weights_a_byte(checkpoints, name):
    size = measure(checkpoints / name)
    assert size.logical_parameters == TOTAL
    packed = sum(LINEAR) // 2
    scales = sum(LINEAR) // 64
    tables = 16 * len(LINEAR)  # the sixteen nf4 values, once per weight
    if name == "nf4":  # scales quantized in turn: 256 to a second scale, and their own table
        tables += sum(math.ceil(weights / 64 / 256) for weights in LINEAR) + 256 * len(LINEAR)
    header = read_header(checkpoints / name / "model.safetensors")
    states = sum(tensor.elements for key, tensor in header.items() if "quant_state" in key)  # JSON as bytes
    assert size.stored_elements == TOTAL - sum(LINEAR) + packed + scales + tables + states
    assert size.bytes_by_dtype["BF16"] == 2 * (TOTAL - sum(LINEAR))
    assert size.bytes_by_dtype["U8"] == packed + states + (scales if name == "nf4" else 0)


def test_int8_scales_are_no_parameters(checkpoints):
    size = measure(checkpoints / "int8")
    assert size.logical_parameters == TOTAL
    assert size.bytes_by_dtype["I8"] == sum(LINEAR)
    assert size.stored_elements > TOTAL


def test_adapter_alone_and_beside_a_model(checkpoints, tmp_path):
    adapter = measure(checkpoints / "adapter")
    weights = 2 * 4 * (H + H)  # two layers, rank 4, A and B of q_proj
    assert adapter.logical_parameters == adapter.stored_elements == weights
    assert adapter.bytes_by_part == {"adapter": 4 * weights}  # fp32
    for name in ("bf16/model.safetensors", "bf16/config.json", "adapter/adapter_model.safetensors"):
        (tmp_path / name.split("/")[1]).write_bytes((checkpoints / name).read_bytes())
    both = measure(tmp_path)
    assert both.files == ("model.safetensors", "adapter_model.safetensors")
    assert both.logical_parameters == TOTAL + weights


def test_the_papers_4_95_billion_are_8_40():
    """Qwen2-Audio-7B by its shapes alone, in bf16 and as the reference stores it: all but lm_head in nf4."""
    big = Qwen2AudioConfig(
        audio_config={"d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120, "encoder_attention_heads": 20},
        text_config={
            "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156_032,
        },
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(big)
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    }
    plain, packed = {}, {}
    for name, weight in model.named_parameters():
        plain[name] = packed[name] = Tensor("BF16", tuple(weight.shape), 2 * weight.numel())
        if name in linear:
            half, scales = weight.numel() // 2, weight.numel() // 64
            packed[name] = Tensor("U8", (half, 1), half)
            packed[f"{name}.absmax"] = Tensor("U8", (scales,), scales)
            packed[f"{name}.quant_state.bitsandbytes__nf4"] = Tensor("U8", (170,), 170)
    assert logical_parameters(plain, {}) == logical_parameters(packed, {}) == 8_397_094_912
    assert sum(tensor.elements for tensor in packed.values()) / 1e9 == pytest.approx(4.953, abs=1e-3)


def test_tied_weights_count_once():
    weights = {
        "model.embed_tokens.weight": Tensor("F32", (10, 4), 160),
        "lm_head.weight": Tensor("F32", (10, 4), 160),
        "model.layers.0.mlp.up_proj.weight": Tensor("F32", (4, 4), 64),
    }
    assert logical_parameters(weights, {"tie_word_embeddings": False}) == 96
    assert logical_parameters(weights, {"tie_word_embeddings": True}) == 56
    assert logical_parameters(weights, {"text_config": {"tie_word_embeddings": True}}) == 56
    del weights["lm_head.weight"]  # as transformers saves them
    assert logical_parameters(weights, {"tie_word_embeddings": True}) == 56


def test_an_unknown_quantization_is_not_guessed():
    weights = {"model.layers.0.mlp.up_proj.qweight": Tensor("I32", (4, 4), 64)}
    assert logical_parameters(weights, {"quantization_config": {"quant_method": "gptq"}}) is None


def test_parts():
    names = {
        "audio_tower.layers.3.fc1.weight": "audio_encoder",
        "model.audio_tower.layers.3.fc1.lora_A.weight": "adapter",
        "multi_modal_projector.linear_1.weight": "projector",
        "language_model.model.layers.3.mlp.up_proj.weight.absmax": "decoder",
        "model.vision_tower.layers.3.fc1.weight": "other",
        "language_model.lm_head.weight": "head",
        "language_model.model.norm.weight": "other",
    }
    assert {name: part_of(name) for name in names} == names


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(64), "b": torch.ones(2)}, file)
    assert measure(tmp_path).stored_elements == 66
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is truncated or damaged"):
        measure(tmp_path)


@pytest.mark.parametrize("header", [b"not json", b"[]", b'{"a": {}}', b'{"a": {"dtype": "F32", "shape": 3}}', b"\xff"])
def test_a_damaged_header_is_refused_by_name(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is truncated or damaged"):
        measure(tmp_path)


def test_directories_without_weights_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        measure(tmp_path)
    with pytest.raises(ArtifactError, match="no model directory"):
        measure(tmp_path / "absent")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no weight_map"):
        measure(tmp_path)


@pytest.mark.parametrize("format_name", ["w4a16", "mixed"])
def test_packed_weights_count_as_what_they_stand_for(pico_dir, tmp_path, format_name):
    """compressed-tensors: 4 bits in the decoder alone; every width at once. Also when it names classes of modules."""
    from sordino.formats import packed
    from sordino.layouts import tables
    from sordino.measure.audit import audit
    from sordino.models import shapes

    source = pico_dir("qwen2_audio")
    model = shapes.model(json.loads((source / "config.json").read_text()))
    bits = tables.w4a16(model.tensors)
    if format_name == "mixed":
        matrices = [tensor for tensor in model.tensors if tensor.kind != "other"]
        bits = {t.name: 8 if t.kind == "embedding" else (2, 3, 4, 8)[i % 4] for i, t in enumerate(matrices)}
    packed.write(str(source), tmp_path, bits)
    audited, measured = audit(tmp_path), measure(tmp_path)
    assert audited.parameters == measured.logical_parameters == model.parameters
    assert audited.findings == () and audited.wasted_bytes == 0
    plain = audit(source)
    assert {part: share.parameters for part, share in audited.parts.items()} == {
        part: share.parameters for part, share in plain.parts.items()
    }
    widths = {f"{width}-bit weights" for width in set(bits.values())}
    assert widths == {kind for kind in audited.storage if kind.endswith("weights")}
    for width in set(bits.values()):
        stands_for = sum(t.elements for t in model.tensors if bits.get(t.name) == width)
        assert audited.storage[f"{width}-bit weights"].parameters == stands_for
        assert audited.storage[f"{width}-bit weights"].bytes * 8 == width * stands_for
    assert sum(share.bytes for share in audited.storage.values()) == sum(
        share.bytes for share in audited.parts.values()
    )
    if format_name == "w4a16":  # as other tools write it
        config = json.loads((tmp_path / "config.json").read_text())
        groups = config["quantization_config"]["config_groups"].values()
        sizes = {group["weights"]["group_size"] for group in groups}
        assert sizes == {64, 128}  # 64 and 128 columns
        wide = [group for group in groups if group["weights"]["group_size"] == 64]
        config["quantization_config"]["config_groups"] = {"group_0": wide[0] | {"targets": ["Linear"]}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert measure(tmp_path).logical_parameters != model.parameters  # of one size of groups, which is not so
        config["quantization_config"]["config_groups"] = {}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert measure(tmp_path).logical_parameters is None  # not guessed
