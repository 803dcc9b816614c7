"""Packed checkpoints: stock transformers reads what was meant, compressed-tensors writes the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from sordino.checkpoint.reading import read_header
from sordino.errors import FamilyError
from sordino.formats import packed
from sordino.layouts import tables
from sordino.models import loading, registry, saving, shapes, stored
from sordino.quantization import sensitivity
from sordino.quantization.integer import Rounded, Scheme, quantize
from tests import tiny

FAMILIES = sorted(registry.FAMILIES)


def mixture(directory: Path) -> dict[str, int]:
    """Every width in every part that takes it, and something of each part left alone."""
    found = {}
    model = shapes.model(json.loads((directory / "config.json").read_text()))
    matrices = [t for t in model.tensors if t.kind not in ("counter", "other") and sensitivity.part_of_weight(t.name)]
    for i, tensor in enumerate(matrices):
        embedding = 16 if model.tied else 8
        found[tensor.name] = embedding if tensor.kind == "embedding" else (2, 3, 4, 8, 16)[i % 5]
    return found


class Written:
    """A packed checkpoint of a pico model, and the weights that it stands for, by their names in the file."""

    def __init__(self, source: Path, directory: Path, bits: dict[str, int]) -> None:
        self.source, self.directory, self.bits = source, directory, bits
        self.weights = load_file(source / "model.safetensors")
        self.rounded: dict[str, Rounded] = {}

        def rounder(name: str, weight: Tensor, scheme: Scheme) -> Rounded:
            self.rounded[name] = quantize(weight, scheme)
            self.weights[name] = self.rounded[name].dequantized()
            return self.rounded[name]

        packed.write(str(source), directory, bits, rounder=rounder)

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "config.json").read_text())
        return found

    def plain(self, directory: Path) -> Path:
        """The same model with the dequantized weights as they are."""
        directory.mkdir()
        for file in self.source.iterdir():
            if file.suffix != ".safetensors":
                (directory / file.name).write_bytes(file.read_bytes())
        kept = {n: w if n in self.rounded else w.bfloat16().float() for n, w in self.weights.items()}
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
        return directory


@pytest.fixture(scope="module", params=FAMILIES)
def written(
    request: pytest.FixtureRequest, pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Written:
    source = pico_dir(request.param)
    return Written(source, tmp_path_factory.mktemp("packed"), mixture(source))


def test_stock_transformers_computes_with_the_dequantized_weights(
    written: Written, pico: Callable[[str], Any], tmp_path: Path
) -> None:
    speech = pico(written.config["model_type"])
    stock = tiny.stock(speech, written.directory, dtype=torch.float32).model
    plain = tiny.stock(speech, written.plain(tmp_path / "plain"), dtype=torch.float32).model
    inputs = tiny.stock_inputs(speech, tiny.clip(1, 1.0), "Translate.")
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, plain(**inputs).logits)
    assert {p.dtype for p in stock.parameters() if p.is_floating_point()} == {torch.float32}


def test_sordino_opens_it_as_plain_layers(written: Written, pico: Callable[[str], Any], tmp_path: Path) -> None:
    opened = loading.load_checkpoint(str(written.directory), device="cpu", dtype="float32")
    plain = loading.load_checkpoint(str(written.plain(tmp_path / "plain")), device="cpu", dtype="float32")
    encoded = tiny.ask(opened, [tiny.clip(2, 1.0)])
    assert torch.equal(tiny.logits(opened, encoded), tiny.logits(plain, encoded))
    assert dict(opened.model.state_dict()).keys() == dict(plain.model.state_dict()).keys()
    assert not torch.equal(tiny.logits(pico(written.config["model_type"]), encoded), tiny.logits(opened, encoded))
    again = tmp_path / "again"
    saving.save(opened, again)  # and what is saved from it is a plain model
    assert "quantization_config" not in json.loads((again / "config.json").read_text())


def test_compressed_tensors_writes_the_same_file(written: Written, tmp_path: Path) -> None:
    """Its own compressor, given the same scales: every tensor is equal to ours in name, type, shape and bytes."""
    family = registry.get(written.config["model_type"])
    model = getattr(transformers, family.model_class).from_pretrained(written.source, dtype=torch.float32)
    told = QuantizationConfig.model_validate({**written.config["quantization_config"], "quantization_status": "frozen"})
    apply_quantization_config(model, told)
    scales = {family.tensors.live_name(name).removesuffix(".weight"): each for name, each in written.rounded.items()}
    for name, module in model.named_modules():
        if hasattr(module, "quantization_scheme"):
            rounded = scales.pop(name)
            module.weight_scale.data.copy_(rounded.scale)
            module.weight.data.copy_(rounded.dequantized())  # a rounded weight rounds to itself
    assert not scales
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.bfloat16()
    model.save_pretrained(tmp_path)
    theirs, ours = load_file(tmp_path / "model.safetensors"), load_file(written.directory / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor), name


def test_the_file_has_the_bytes_that_shapes_predict(written: Written) -> None:
    model = shapes.model(written.config)
    file = written.directory / "model.safetensors"
    assert tables.safetensors_bytes(tables.mixed(model.tensors, written.bits)) == file.stat().st_size
    whole_bytes = set() if model.tied else {"I8"}
    assert {t.dtype for t in read_header(file).values()} == {"BF16", "I32", "I64"} | whole_bytes


def test_configuration_says_what_is_tied(written: Written, pico: Callable[[str], Any]) -> None:
    tied = tiny.is_tied(pico(written.config["model_type"]))
    core = registry.get(written.config["model_type"]).core(written.config)
    text = core.get("text_config", core)
    assert written.config["tie_word_embeddings"] is text["tie_word_embeddings"] is tied


def test_decoder_alone_is_one_group(pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """w4a16: nothing of the other parts is matched by any expression, under vLLM's names either."""
    config = json.loads((pico_dir("qwen2_audio") / "config.json").read_text())
    bits = tables.w4a16(shapes.model(config).tensors)
    told = Written(pico_dir("qwen2_audio"), tmp_path, bits).config["quantization_config"]
    assert told["format"] == "pack-quantized"
    model = QuantizationConfig.model_validate(told)
    from compressed_tensors.utils.match import match_name

    targets = [target for group in model.config_groups.values() for target in group.targets]
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def picked(name: str) -> tuple[bool, bool]:
        return any(match_name(name, t, fused) for t in targets), any(match_name(name, t, fused) for t in model.ignore)

    assert picked("language_model.model.layers.0.self_attn.qkv_proj") == (True, False)
    assert picked("language_model.model.layers.3.mlp.gate_up_proj") == (True, False)
    assert picked("language_model.lm_head") == picked("lm_head") == (False, True)
    assert picked("audio_tower.layers.0.self_attn.q_proj") == (False, True)
    assert picked("multi_modal_projector.linear") == (False, True)
    assert picked("language_model.model.layers.30.mlp.gate_up_proj") == (False, False)


def test_expressions_that_find_other_modules_are_refused(written: Written) -> None:
    told = written.config["quantization_config"]
    model = stored.open_model(str(written.source))
    schemes = packed.schemes_of({n: t.shape for n, t in model.checkpoint.tensors.items()}, written.bits, 128)
    packed.check_targets(model.speech, told, schemes)
    told["config_groups"]["group_1"]["targets"].append(r"re:.*model\.norm$")
    told["ignore"] = []
    with pytest.raises(FamilyError, match=r"\.norm\.weight"):
        packed.check_targets(model.speech, told, schemes)


def test_what_cannot_be_packed_is_refused_before_writing(
    pico_dir: Callable[[str], Path], written: Written, tmp_path: Path
) -> None:
    source = str(pico_dir("qwen2_audio"))

    def refused(bits: dict[str, int], match: str, model: str = source) -> None:
        with pytest.raises(FamilyError, match=match):
            packed.write(model, tmp_path, bits)
        assert not list(tmp_path.iterdir())

    refused({"lm_head.weight": 4}, "no weight 'lm_head.weight'")
    refused({"language_model.model.norm.weight": 4}, "not the weight of a linear layer")
    refused({"audio_tower.embed_positions.weight": 4}, "not the weight of a linear layer")
    refused({"language_model.model.embed_tokens.weight": 4}, "cannot be stored in 4 bits")
    refused({"language_model.lm_head.weight": 4}, "quantized already", str(written.directory))


def test_weights_that_are_not_finite_are_refused_by_name(pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    source = pico_dir("qwen2_audio")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(FamilyError, match=r"layers\.1\.mlp\.up_proj\.weight' hold NaN or infinity"):
        packed.write(str(broken), out, {name: 4})
