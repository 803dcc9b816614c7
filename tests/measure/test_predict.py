"""Predicted memory: the paper's figures by arithmetic, and what autograd really keeps of a pico model's batch."""

import contextlib
import json

import pytest
import torch

from sordino.layouts import tables
from sordino.measure import predict
from sordino.models import loading, registry, shapes
from sordino.training.collate import Example, collate
from sordino.training.trainer import set_checkpointing
from tests import tiny
from tests.data import sounds
from tests.models.test_shapes import QWEN2_AUDIO_7B, config_of

BIG = shapes.model(QWEN2_AUDIO_7B)
FOUR = predict.Batch(4, 30.0)


def test_full_fine_tuning_in_16_bits_takes_67_gb():
    memory = predict.full_training(BIG, FOUR, "bfloat16", checkpointing=True)
    assert round((memory.weights + memory.gradients + memory.moments) / 1e9) == 67
    assert memory.weights + memory.gradients + memory.moments == pytest.approx(8 * BIG.parameters, rel=1e-3)
    assert memory.weights + memory.gradients + memory.moments < memory.peak < 72e9


def test_precisions_and_frozen_parts():
    full = predict.full_training(BIG, FOUR, "float32")
    assert full.weights + full.gradients + full.moments == pytest.approx(16 * BIG.parameters, rel=1e-3)
    mixed = predict.full_training(BIG, FOUR, "bfloat16-mixed")
    assert (mixed.weights, mixed.moments) == (full.weights, full.moments)
    frozen = predict.full_training(BIG, FOUR, "float32", frozen=("encoder", "projector", "embeddings"))
    rest = sum(t.elements for t in BIG.tensors if t.part in ("decoder", "head", "other"))
    assert frozen.gradients == 4 * rest
    assert frozen.weights == full.weights
    assert frozen.activations < full.activations


def test_qlora():
    memory = predict.adapter_training(BIG, FOUR, "bfloat16-mixed", predict.Adapter(64), checkpointing=True)
    nf4 = tables.data_bytes(tables.stored(BIG.tensors, "nf4"))
    assert memory.weights == nf4 + 4 * 207_437_824
    assert memory.gradients + memory.moments == 12 * 207_437_824
    plain = predict.adapter_training(BIG, FOUR, "bfloat16-mixed", predict.Adapter(64, quantized=False))
    assert plain.weights == 2 * BIG.parameters + 4 * 207_437_824
    decoder = predict.adapter_training(BIG, FOUR, "bfloat16-mixed", predict.Adapter(64, decoder_only=True))
    assert decoder.gradients < memory.gradients


def test_translating():
    memory = predict.translating(BIG, predict.Batch(1, 30.0), 256)
    assert memory.weights == 2 * BIG.parameters
    assert memory.peak / 1e9 == pytest.approx(17.5, abs=0.3)
    four_bit = predict.translating(BIG, predict.Batch(1, 30.0), 256, quantized=True)
    assert four_bit.weights == tables.data_bytes(tables.stored(BIG.tensors, "nf4"))
    assert predict.translating(BIG, predict.Batch(8, 30.0), 256).activations > 7 * memory.activations


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16-mixed"])
@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_activations_against_what_autograd_keeps(pico_dir, tmp_path, family, precision, checkpointing, monkeypatch):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    speech = loading.load_checkpoint(str(pico_dir(family)), device="cpu", dtype=dtype)
    if checkpointing:
        set_checkpointing(speech.recomputing, True)
    speech.model.train()
    file = sounds.save(tmp_path / "a.wav", tiny.clip(0, 3.0), subtype="FLOAT")
    example = Example(sounds.clip("a", file, seconds=3.0), speech.answer_ids("x" * 11))
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    batch = collate(speech, [example] * 4, prompt)

    own = {weight.untyped_storage().data_ptr() for weight in speech.model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes again
        return tensor

    mixed = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16-mixed" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        tiny.answer_loss(speech, batch)
    measured = sum(size for size, _ in kept.values())

    monkeypatch.setattr(predict.Batch, "tokens", lambda *_: batch.ids.shape[1])
    monkeypatch.setattr(predict.Batch, "answer", lambda _: 12)
    model = shapes.model(config_of(pico_dir(family)))
    predicted = predict.full_training(model, predict.Batch(4, 3.0), precision, checkpointing=checkpointing).activations
    if checkpointing:  # the layer that is computed again while going back is not in what was kept going forth
        every = predict.full_training(model, predict.Batch(4, 3.0), precision).activations
        assert measured < predicted < measured + every / tiny.ENCODER_LAYERS
    else:
        assert predicted == pytest.approx(measured, rel=0.15)


def test_formulas_name_every_setting():
    text = json.dumps(predict.FORMULAS)
    assert all(word in text for word in ("float32", "bfloat16-mixed", "QLoRA", "checkpointing", "max_new_tokens"))


@pytest.mark.parametrize(
    ("precision", "optimizer", "bytes_a_weight", "gigabytes"),
    [
        ("float32", "adamw", 16, {1: 134, 2: 67, 8: 17}),
        ("bfloat16-mixed", "adamw", 16, {1: 134, 2: 67, 8: 17}),
        ("bfloat16-sharded", "adamw", 16, {1: 134, 2: 67, 8: 17}),
        ("bfloat16", "adamw", 8, {1: 67, 2: 34, 8: 8}),
        ("bfloat16", "adamw8bit", 6.03, {1: 51, 2: 25, 8: 6}),
        ("float32", "adamw8bit", 10.03, {1: 84}),
    ],
)
def test_the_7b_model_on_several_devices(precision, optimizer, bytes_a_weight, gigabytes):
    for devices, expected in gigabytes.items():
        options = {"optimizer": optimizer, "devices": devices, "checkpointing": True}
        memory = predict.full_training(BIG, predict.Batch(1, 30.0), precision, **options)
        held = memory.weights + memory.gradients + memory.moments
        assert held == pytest.approx(bytes_a_weight * BIG.parameters / devices, rel=2e-3)
        assert round(held / 1e9) == expected
        assert memory.peak == held + memory.activations + memory.gathered
        assert (memory.gathered > 0) == (devices > 1 or precision == "bfloat16-sharded")


def test_what_devices_gather_is_what_lies_around_the_layers():
    """Embeddings, head, projector and final norm with their gradients; two layers and the gradients of one."""
    around = sum(t.elements for t in BIG.tensors if t.part not in ("decoder", "audio_encoder"))
    layer = sum(t.elements for t in BIG.tensors if t.part == "decoder") // 32
    two = predict.full_training(BIG, FOUR, "bfloat16-sharded", devices=2)
    assert two.gathered == pytest.approx(2 * (2 * around + 3 * layer), rel=1e-6)
    assert layer == pytest.approx(202.4e6, rel=1e-3)
    frozen = predict.full_training(BIG, FOUR, "float32", devices=4, frozen=("encoder",))
    encoder = sum(t.elements for t in BIG.tensors if t.part == "audio_encoder")
    assert frozen.weights == pytest.approx(4 * ((BIG.parameters - encoder) / 4 + encoder), abs=4)


def test_8_bit_moments_are_what_bitsandbytes_keeps():
    from bitsandbytes.optim import AdamW8bit

    sizes = {"linear": (64, 100), "norm": (64,)}
    weights = [torch.nn.Parameter(torch.ones(size)) for size in sizes.values()]
    optimizer = AdamW8bit(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [state for weight in weights for key, state in optimizer.state[weight].items() if key[:4] != "qmap"]
    kept = sum(state.numel() * state.element_size() for state in states if isinstance(state, torch.Tensor))
    shaped = [shapes.Shape(name, size, "linear") for name, size in sizes.items()]
    assert predict.moment_bytes(shaped, "adamw8bit", 4) == kept
