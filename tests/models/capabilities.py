"""What a family can do, tried on its tiny model: each of these does it and checks it, or meets the refusal.

python -m tests.models.table     # tries all of it, and writes the tables of README.md and docs/families.md
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file

from sordino.data.clip import Clip
from sordino.errors import SordinoError
from sordino.formats import packed, w4a16, w4a16_gptq
from sordino.formats import registry as formats
from sordino.models import adapters, loading, registry, shapes, stored
from sordino.models import nf4 as quantized
from sordino.models.family import Scope
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import Decoding, translate
from sordino.models.speech import SpeechModel
from sordino.pruning import layers, search
from sordino.pruning.scoring import ClipScorer, ScoringOptions, TargetLanguage
from sordino.quantization import gptq, sensitivity
from sordino.vocabulary import tokenizer, trimming, writing
from tests import tiny

WAVES = {"0": tiny.clip(0, 0.6), "1": tiny.clip(1, 1.1)}  # by the clips' names
ANSWERS = ["ja", "nein"]
NEW = 4  # tokens of a translation


def encoded(speech: SpeechModel) -> list[EncodedClip]:
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    features = Features(speech, None)
    clips = [Clip(name, f"/{name}.wav", None, "en", "de") for name in WAVES]
    return [features.encode_waveform(clip, WAVES[clip.id], prompt) for clip in clips]


def opened(source: Path) -> SpeechModel:
    return loading.load_checkpoint(str(source), device="cpu", dtype="float32")


def round_off(speech: SpeechModel) -> None:
    """Weights as files in 16 bits have them, in 32 bits."""
    for tensor in speech.model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())


def assert_same(speech: SpeechModel, directory: Path) -> None:
    """Stock `from_pretrained` of a directory, asked through the stock processor, gives the logits of a model."""
    expected = tiny.logits(speech, tiny.ask(speech, [WAVES["1"]]))
    stock = tiny.stock(speech, directory, dtype=torch.float32).model
    with torch.no_grad():
        logits = stock(**tiny.stock_inputs(speech, WAVES["1"], tiny.QUESTION.instruction), use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=5e-4, rtol=1e-4)


def prune(source: Path, out: Path, scope: Scope) -> None:
    """Ranked: what a trial translates is what the model without the layer translates. Pruned from file to file."""
    speech = opened(source)
    if scope not in speech.family.scopes:
        stack = speech.family.stacks.get(scope)
        raise SordinoError((stack and stack.whole) or f"no {scope}")
    task = TargetLanguage("de", encoded(speech), ANSWERS, [speech.answer_ids(answer) for answer in ANSWERS])

    def again(clip: EncodedClip) -> EncodedClip:
        return Features(speech, None).encode_waveform(clip.clip, WAVES[clip.clip.id], clip.prompt)

    scorer = ClipScorer(speech, [task], ScoringOptions("chrf", NEW, 2**28), again)
    pool = [layer for layer in search.candidates(speech, scope, 0, 0) if search.allows(speech, [layer])]
    for trial in scorer.trials(1, [], pool[:2], len(WAVES)):
        assert trial.layer
        with search.without(speech, [trial.layer]):
            texts = [done.text for done in translate(speech, encoded(speech), Decoding(1, NEW))]
        assert list(trial.hypotheses or ()) == texts
    keep = [i for i in range(speech.layer_count(scope)) if i != pool[0].index]
    model = stored.open_model(str(source))
    layers.prune(model.speech, scope, keep)
    model.write_16bit(out, "pruning")
    layers.prune(speech, scope, keep)
    round_off(speech)
    assert_same(speech, out)


def trim(source: Path, out: Path) -> None:
    """All logits of kept tokens are what they were."""
    model = stored.open_model(str(source))
    speech = tokenizer.without_weights(str(source))
    bpe = tokenizer.bpe_of(speech)
    configs = tokenizer.token_configs(speech, model.speech.model.config)
    rows = configs[-1].vocab_size
    named = tokenizer.named_ids(configs) | trimming.named_ids(writing.generation_config(model), rows)
    whole = opened(source)
    inputs = tiny.ask(whole, [WAVES["1"]])
    kept = trimming.choose(bpe, named | set(inputs.input_ids[0]), {}, None)
    writing.describe(model, configs, bpe, kept, out)
    writing.write_weights(model, kept, out)
    round_off(whole)
    small = opened(out)
    trimmed = tiny.logits(small, tiny.ask(small, [WAVES["1"]]))
    torch.testing.assert_close(trimmed, tiny.logits(whole, inputs)[..., list(kept.rows)], atol=1e-4, rtol=1e-4)


def adapt(source: Path, out: Path) -> None:
    """Trained apart, saved, loaded again, and merged."""
    speech = opened(source)
    inputs = tiny.ask(speech, [WAVES["1"]])
    peft_model = adapters.attach(speech, adapters.LoraOptions(r=4, alpha=8), seed=0)
    tiny.stir(speech)
    adapted = tiny.logits(speech, inputs)
    adapters.save(peft_model, out, str(source))
    again = opened(source)
    adapters.load(again, out)
    torch.testing.assert_close(tiny.logits(again, inputs), adapted)
    adapters.merge(again)
    torch.testing.assert_close(tiny.logits(again, inputs), adapted, atol=1e-3, rtol=1e-3)


def nf4(source: Path, out: Path) -> None:
    """Stock transformers loads the weights that sordino computes with, which are near those in 16 bits."""
    formats.get("nf4").write(str(source), out)
    speech, plain = loading.load_checkpoint(str(out), device="cpu", dtype="bfloat16"), opened(source)
    stock = tiny.stock(speech, out, dtype=torch.bfloat16).model.state_dict()
    for name, tensor in speech.model.state_dict().items():
        assert torch.equal(tensor.float(), stock[name].float()), name
    packed_names = quantized.quantized_linears(speech.model)
    assert packed_names
    for name in packed_names:
        weight = speech.model.get_submodule(name).weight
        near, real = dequantize_4bit(weight.data, weight.quant_state).float(), plain.model.get_submodule(name).weight
        assert 0 < (near - real).norm() / real.norm() < 0.12, name
    assert tiny.logits(speech, tiny.ask(speech, [WAVES["1"]])).isfinite().all()


def four_bits(source: Path, out: Path) -> None:
    w4a16.write(str(source), out)
    assert_same(opened(out), out)


def calibrated(source: Path, out: Path) -> None:
    speech = opened(source)
    answers = [speech.answer_ids(answer) for answer in ANSWERS]
    calibration = gptq.Calibration(speech, encoded(speech), answers, memory=2**20)
    w4a16_gptq.write(str(source), out, calibration=calibration, state=out.parent / "state")
    assert_same(opened(out), out)
    nearest = out.parent / "nearest"
    nearest.mkdir()
    w4a16.write(str(source), nearest)
    one, other = (load_file(path / "model.safetensors") for path in (out, nearest))
    assert one.keys() == other.keys() and any(not torch.equal(one[name], other[name]) for name in one)


def mixed(source: Path, out: Path) -> None:
    """Widths in turn, of all that is ever rounded."""
    model = shapes.model(json.loads((source / "config.json").read_text()))
    matrices = [t for t in model.tensors if t.kind in ("linear", "head") and sensitivity.part_of_weight(t.name)]
    packed.write(str(source), out, {tensor.name: (2, 3, 4, 8, 16)[i % 5] for i, tensor in enumerate(matrices)})
    assert_same(opened(out), out)


def gguf(source: Path, out: Path) -> None:
    """What llama.cpp makes of it is in tests/models/test_hybrid.py, which needs it."""
    formats.get("gguf-q8_0").write(str(source), out)
    assert registry.is_gguf(str(out))
    assert len(list(out.glob("*.gguf"))) == 1


@dataclasses.dataclass(frozen=True)
class Capability:
    """column: its title in the tables; attempt: (model, empty directory) -> raises SordinoError for the refusal."""

    column: str
    attempt: Callable[[Path, Path], None]


CAPABILITIES = (
    Capability("decoder layers", lambda source, out: prune(source, out, "decoder")),
    Capability("encoder layers", lambda source, out: prune(source, out, "encoder")),
    Capability("trim", trim),
    Capability("LoRA", adapt),
    Capability("nf4", nf4),
    Capability("w4a16", four_bits),
    Capability("GPTQ", calibrated),
    Capability("mixed", mixed),
    Capability("GGUF", gguf),
)


def works(capability: Capability, source: Path, directory: Path) -> bool:
    """Whether it was done, and not refused. Any other error is raised."""
    out = directory / "out"
    out.mkdir(parents=True)
    try:
        capability.attempt(source, out)
    except SordinoError:
        return False
    return True
