"""nf4: what is quantized, what is stored, and training through it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from sordino.errors import ArtifactError, FamilyError
from sordino.formats import nf4 as nf4_export
from sordino.models import adapters, loading, registry, saving
from sordino.models import nf4 as quantize
from sordino.models.speech import SpeechModel
from tests import tiny

COMPANION = ("absmax", "quant_map", "quant_state")  # scales and tables beside a packed weight

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", params=sorted(registry.FAMILIES))
def stored(
    request: pytest.FixtureRequest, pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SpeechModel, Path]:
    """A model of each family as transformers quantizes it while loading, never run, and an export of it."""
    directory, source = tmp_path_factory.mktemp("nf4"), str(pico_dir(request.param))
    nf4_export.write(source, directory)
    speech = loading.load_checkpoint(source, device="cpu", dtype=torch.bfloat16, quantize="nf4")
    for parameter in speech.model.parameters():
        if parameter.dtype == torch.float32:  # transformers keeps some tables of positions in 32 bits
            parameter.data = parameter.data.to(torch.bfloat16)
    return speech, directory


@pytest.fixture
def nf4(model_dir: Path) -> SpeechModel:
    return loading.load_checkpoint(str(model_dir), device="cpu", quantize="nf4")


def dequantized(module: nn.Module) -> Tensor:
    weight: Tensor = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return weight.float()


def tensors(directory: Path) -> dict[str, Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


@pytest.mark.parametrize("shape", [(300, 77), (1, 5), (64, 64), (33, 128)])
def test_a_matrix_is_packed_as_bitsandbytes_packs_it(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    expected = {"": packed, **{f".{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}
    monkeypatch.setattr(quantize, "PIECE", 1024)
    found = quantize.nf4_tensors(weight)
    assert found.keys() == expected.keys() == quantize.nf4_shapes(shape).keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor)
        planned = quantize.nf4_shapes(shape)[name][1]
        assert planned is None or planned == tuple(tensor.shape)


def test_all_linear_layers_but_the_head_are_quantized(
    stored: tuple[SpeechModel, Path], pico: Callable[[str], SpeechModel]
) -> None:
    speech, _ = stored
    quantized, plain = quantize.quantized_linears(speech.model), pico(speech.family.model_type).model
    head = speech.family.parts["head"]
    assert quantized == [n for n, m in plain.named_modules() if type(m) is nn.Linear and n != head]
    assert set(adapters.targets(speech, "all")) <= set(quantized)
    for part in {"encoder", "projector", "decoder"} & set(speech.family.parts):
        assert any(name.startswith(speech.family.parts[part]) for name in quantized)
    for part in ("head", "embeddings"):
        assert speech.part(part).weight.dtype == torch.bfloat16


def test_stock_loading_is_bit_equal(stored: tuple[SpeechModel, Path]) -> None:
    speech, directory = stored
    again = tiny.stock(speech, directory, dtype=torch.bfloat16)
    quantize.check_nf4(again.family, again.model)
    expected = speech.model.state_dict()
    assert expected.keys() == again.model.state_dict().keys()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor.float(), expected[name].float()), name


def test_the_original_is_near(stored: tuple[SpeechModel, Path], pico: Callable[[str], SpeechModel]) -> None:
    speech, directory = stored
    original = tiny.fresh(pico(speech.family.model_type))
    reference = tiny.fresh(original)
    loaded = loading.load_checkpoint(str(directory), device="cpu")
    packed = [f"{name}.weight" for name in quantize.quantized_linears(loaded.model)]
    for name in quantize.quantized_linears(loaded.model):
        weight = original.model.get_submodule(name).weight.detach()
        restored = dequantized(loaded.model.get_submodule(name))
        assert 0 < (restored - weight).norm() / weight.norm() < 0.12, name
        reference.model.get_submodule(name).weight.data = restored
    for name, tensor in reference.model.state_dict().items():
        if name not in packed:
            tensor.copy_(tensor.to(torch.bfloat16).float())
    inputs = tiny.ask(original, [tiny.clip(1, 0.8)])
    got, expected = tiny.logits(loaded, inputs), tiny.logits(reference, inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)
    batch = tiny.embedded(loaded, inputs)
    batch["inputs_embeds"].requires_grad_()  # bitsandbytes unpacks on another path where gradients flow
    torch.testing.assert_close(loaded.model(**batch).logits, expected, atol=1e-3, rtol=1e-3)


def test_nothing_is_stored_in_32_bits(stored: tuple[SpeechModel, Path]) -> None:
    speech, directory = stored
    weights = {n: t for n, t in tensors(directory).items() if not any(word in n for word in COMPANION)}
    assert {t.dtype for n, t in weights.items() if "num_batches" not in n} == {torch.uint8, torch.bfloat16}
    packed = [n for n, t in weights.items() if t.dtype == torch.uint8]
    assert len(packed) == len(quantize.quantized_linears(speech.model))
    tied = tiny.is_tied(speech)
    assert sum("embed_tokens." in n or "embed_tokens_per" in n for n in weights) == 1 + len(speech.family.tensors.rows)
    assert sum("lm_head" in n for n in weights) == (0 if tied else 1)
    config = json.loads((directory / "config.json").read_text())
    core = speech.family.core(config)
    text = core.get("text_config", core)
    assert config["tie_word_embeddings"] is text["tie_word_embeddings"] is tied
    assert config["quantization_config"]["llm_int8_skip_modules"] == [speech.family.parts["head"]]
    assert loading.load_checkpoint(str(directory), device="cpu").processor is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_model_computes_in_the_type_asked_for(stored: tuple[SpeechModel, Path], dtype: torch.dtype) -> None:
    speech = loading.load_checkpoint(str(stored[1]), device="cpu", dtype=dtype)
    plain = {p.dtype for n, p in speech.model.named_parameters() if p.is_floating_point() and "embed_pos" not in n}
    assert plain == {dtype}
    for name in quantize.quantized_linears(speech.model):
        assert speech.model.get_submodule(name).compute_dtype == dtype
    assert tiny.logits(speech, tiny.ask(speech, [tiny.clip(1, 0.5)])).dtype == dtype


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ([], "lm_head must not be quantized"),
        (["lm_head", "model.audio_tower"], r"audio_tower\.layers\.0.* is not quantized"),
        (["lm_head", "model.multi_modal_projector"], "multi_modal_projector.* is not quantized, 1 such"),
    ],
)
def test_another_choice_of_layers_is_noticed(
    model_dir: Path, speech: SpeechModel, skip: list[str], message: str
) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=skip
    )
    other = tiny.stock(speech, model_dir, quantization_config=config)
    with pytest.raises(FamilyError, match=message):
        quantize.check_nf4(other.family, other.model)


def test_another_kind_of_quantization_is_noticed(model_dir: Path, speech: SpeechModel, nf4: SpeechModel) -> None:
    quantize.check_nf4(nf4.family, nf4.model)
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])  # fp4, quantized once
    with pytest.raises(FamilyError, match="not nf4 with double"):
        quantize.check_nf4(speech.family, tiny.stock(speech, model_dir, quantization_config=config).model)
    with pytest.raises(FamilyError, match="is not quantized"):
        quantize.check_nf4(speech.family, speech.model)


def test_where_the_class_ties_no_heads_a_tied_one_is_not_saved(
    stored: tuple[SpeechModel, Path], tmp_path: Path
) -> None:
    """A class that names no tied weights: the flag alone ties nothing, and one shared tensor cannot be stored."""
    if stored[0].model._tied_weights_keys:
        return
    speech = loading.load_checkpoint(str(stored[0].path), device="cpu")
    claimed = type(speech.model.config).from_pretrained(stored[0].path)
    claimed.tie_word_embeddings = claimed.text_config.tie_word_embeddings = True
    model = type(speech.model)(claimed)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    speech.part("head").weight = speech.part("embeddings").weight
    with pytest.raises(FamilyError, match="head and embedding are one tensor"):
        saving.save(speech, tmp_path)
    speech.part("head").weight = nn.Parameter(speech.part("embeddings").weight.detach().clone())
    saving.save(speech, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


def test_training_goes_through_4_bit_weights(stored: tuple[SpeechModel, Path], tmp_path: Path) -> None:
    """QLoRA: every adapter weight gets a gradient, the loss falls, the packed weights stay."""
    source, directory = stored
    speech = loading.load_checkpoint(str(directory), device="cpu")
    packed = [p.data.clone() for p in speech.model.parameters() if p.dtype == torch.uint8]
    model = adapters.attach(speech, adapters.LoraOptions(r=4, alpha=8), seed=0)
    trained = [p for p in speech.model.parameters() if p.requires_grad]
    inputs, answer = tiny.ask(speech, [tiny.clip(1, 0.5)]), speech.answer_ids("Guten Tag.")
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        batch = tiny.embedded(speech, inputs, [answer])
        predicted = speech.model(**batch, use_cache=False).logits[0, -len(answer) - 1 : -1]
        loss = nn.functional.cross_entropy(predicted, torch.tensor(answer))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.75 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    still = [p.data for p in speech.model.parameters() if p.dtype == torch.uint8]
    assert len(still) == len(packed)
    assert all(torch.equal(after, before) for after, before in zip(still, packed, strict=True))
    with pytest.raises(ArtifactError, match="rounded twice"):
        adapters.merge(speech)
    adapters.save(model, tmp_path, "base")
    adapters.load(
        loading.load_checkpoint(source.path, device="cpu"), tmp_path
    )  # what was trained on nf4 fits the original


def test_parts_can_be_left_in_16_bits(pico_dir: Callable[[str], Path]) -> None:
    for name in registry.FAMILIES:
        speech = loading.load_checkpoint(
            str(pico_dir(name)), device="cpu", quantize="nf4", kept=("encoder", "projector")
        )
        parts = speech.family.parts
        found = quantize.quantized_linears(speech.model)
        heard = [layer for layer in found if speech.family.tensors.runs(layer)]
        assert heard and all(layer.startswith(parts["decoder"] + ".") for layer in heard)
        with pytest.raises(FamilyError, match="not quantized as asked"):
            quantize.check_nf4(speech.family, speech.model)


def test_rows_that_are_no_whole_blocks_are_refused(speech: SpeechModel) -> None:
    """bitsandbytes 0.50.2 on AVX-512: a matrix with rows of 96 comes back with three times its error."""
    linears = quantize.linears(speech.family, speech.model)
    quantize.refuse_split_blocks(speech.family, linears)
    odd = torch.nn.Linear(96, 64)
    with pytest.raises(FamilyError, match="rows of 96 weights, which are no whole blocks of 64"):
        quantize.refuse_split_blocks(speech.family, {**linears, "odd": odd})
    omni = registry.get("qwen2_5_omni")  # the published one has rows of 3,420 in what sees
    quantize.refuse_split_blocks(omni, {"model.visual.blocks.0.mlp.down_proj": odd})
