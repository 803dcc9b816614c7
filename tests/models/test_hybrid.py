"""GGUF exports in llama.cpp: the tokens that transformers gives with the same weights. Needs llama-cpp-python."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf as package
import pytest
import torch

from sordino.checkpoint.gguf import read_header
from sordino.errors import FamilyError
from sordino.formats import gguf
from sordino.inference import translation
from sordino.layouts import gguf as layout
from sordino.measure.audit import audit
from sordino.models import registry
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import Decoding, generate, translate
from sordino.models.llama_cpp import Library
from sordino.models.loading import open_model
from sordino.models.speech import SpeechModel
from tests.data import sounds
from tests.formats.ggufs import rounded_like, unpacked
from tests.stages.runs import Made, answer, run
from tests.tiny import QUESTION, clip

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

TABLE = ("gemma4_unified",)  # llama.cpp looks GELU up in a table of 16 bits, so that no number is the same
FAMILIES = [name for name in registry.FAMILIES if registry.get(name).tensors.gguf]
SECONDS = (1.1, 0.3, 0.8, 0.5, 1.4)
NEW = 24


@pytest.fixture(scope="module")
def opened(
    pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[SpeechModel, Path]]:
    made: dict[tuple[str, str], tuple[SpeechModel, Path]] = {}

    def get(family: str, name: str) -> tuple[SpeechModel, Path]:
        if (family, name) not in made:
            directory = tmp_path_factory.mktemp(f"{family}-{name}")
            gguf.Gguf(name).write(str(pico_dir(family)), directory)
            made[family, name] = open_model(str(directory), device="cpu", dtype="float32"), directory
        return made[family, name]

    return get


def encode(speech: SpeechModel) -> list[EncodedClip]:
    prompt = speech.family.chat.render(speech.processor, QUESTION)
    features = Features(speech, None)
    return [features.encode_waveform(sounds.clip(f"c{i}"), clip(i, s), prompt) for i, s in enumerate(SECONDS)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TABLE])
def test_unrounded_it_is_the_same_model(
    opened: Callable[[str, str], tuple[SpeechModel, Path]],
    pico: Callable[[str], SpeechModel],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    """In 32 bits the tokens of random models are those of transformers, alone and in batches, but for ties that the
    cache's 16 bits decide."""
    monkeypatch.setitem(layout.FORMATS, "gguf-f32", "F32")
    hybrid, _ = opened(family, "gguf-f32")
    encoded = encode(pico(family))
    expected = generate(pico(family), encoded, NEW)
    found = generate(hybrid, encoded, NEW)
    assert agreed(pico(family), encoded, found, expected, 0.02) > 0.8 * sum(map(len, expected))
    assert [generate(hybrid, [h], NEW)[0] for h in encoded] == found
    assert generate(hybrid, encoded[::-1], 5) == [ids[:5] for ids in found[::-1]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gguf-f32", *layout.FORMATS])
def test_tokens_part_at_near_ties_alone(
    opened: Callable[[str, str], tuple[SpeechModel, Path]],
    pico: Callable[[str], SpeechModel],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    name: str,
) -> None:
    """Against transformers with the rounded weights. llama.cpp rounds activations to 8 bits as well, so that a random
    model's near ties fall differently: there, and only there, the tokens may part."""
    monkeypatch.setitem(layout.FORMATS, "gguf-f32", "F32")
    hybrid, directory = opened(family, name)
    rounded = rounded_like(pico(family), directory)
    encoded = encode(rounded)
    found, expected = generate(hybrid, encoded, NEW), generate(rounded, encoded, NEW)
    assert agreed(rounded, encoded, found, expected, 0.15) > 0.3 * sum(map(len, expected))


def agreed(
    speech: SpeechModel, encoded: list[EncodedClip], found: list[list[int]], expected: list[list[int]], tie: float
) -> int:
    """Tokens before the first that differ; all that do must be ties: so near to the best, in deviations of scores."""
    total = 0
    for h, ours, theirs in zip(encoded, found, expected, strict=True):
        parting = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        total += len(theirs) if parting is None else parting
        if parting is not None:
            scores = next_scores(speech, h, theirs[:parting])
            assert scores.max() - scores[ours[parting]] < tie * scores.std()
    return total


@torch.no_grad()
def next_scores(speech: SpeechModel, encoded: EncodedClip, answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*encoded.ids, *answer]])
    features = speech.project([encoded.states])
    scores: torch.Tensor = speech.model(inputs_embeds=speech.embed(ids, features)).logits[0, -1]
    return scores


def test_a_trained_model_gives_the_same_texts(made: Made, tmp_path: Path) -> None:
    """What `sordino translate` prints, of a run's student and of its Q8_0 export."""
    student = made.finished / "60-student"
    gguf.Q8_0.write(str(student), tmp_path)
    shutil.copy(student / "sordino.json", tmp_path)
    files = [json.loads(line)["audio"] for line in (made.finished / "10-data" / "test.jsonl").read_text().splitlines()]
    options = {"target": "de", "device": "cpu", "max_new_tokens": 12}
    rows = translation.translate_files(str(tmp_path), files, **options)
    assert all(row["seconds"] > 0 for row in rows)
    again = translation.translate_files(str(tmp_path), files, batch_size=2, **options)
    assert [row["text"] for row in again] == [row["text"] for row in rows]
    expected = translation.translate_files(str(student), files, **options)
    same = sum(a["text"] == b["text"] for a, b in zip(rows, expected, strict=True))
    assert same >= 0.5 * len(files)


def test_a_recipe_exports_translates_and_weighs_it(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["gguf-q8_0", "gguf-q4_k_m"]
    changes = {"trim": None, "export": {"formats": names}, "translate": {"systems": ["merged", *names]}}
    file = made.copied(tmp_path, changes)
    planned = next(line for line in answer(capsys, "plan", file)["plan"] if line["stage"] == "export")["forecast"]
    run("run", file)
    finished = tmp_path / "runs" / "run"
    exports = [finished / "70-export" / name for name in names]
    weights = sum(f.stat().st_size for e in exports for f in (e / "encoder.safetensors", e / "decoder.gguf"))
    beside = sum(f.stat().st_size for f in made.model.iterdir() if f.suffix != ".safetensors")
    assert planned["size"] == pytest.approx(weights + len(names) * beside, rel=0.01)
    for name, export in zip(names, exports, strict=True):
        speed = json.loads((finished / "80-outputs" / name / "speed.json").read_text())
        assert speed["model"]["decoder_layers"] == 4
        assert speed["tokens"] > 0
        assert not audit(export).findings
    decoder = json.loads((exports[1] / "audit.json").read_text())["decoder"]
    assert decoder["instead"]["blk.0.attn_q.weight"] == "Q5_0 instead of Q4_K: its rows of 64 are no whole blocks"
    assert decoder["tensors"]["Q5_0"] + decoder["tensors"]["Q8_0"] == len(decoder["instead"])


def test_hypotheses_stop_at_stop_tokens(
    opened: Callable[[str, str], tuple[SpeechModel, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hybrid, _ = opened("qwen2_audio", "gguf-q8_0")
    encoded = encode(hybrid)
    whole = generate(hybrid, encoded, 12)
    stop = whole[0][4]
    monkeypatch.setattr(SpeechModel, "stop_ids", lambda _: [stop])
    cut = [ids[: ids.index(stop)] if stop in ids else ids for ids in whole]
    assert generate(hybrid, encoded, 12) == cut
    assert [h.tokens for h in translate(hybrid, encoded, Decoding(2, 12))] == [len(ids) for ids in cut]
    assert generate(hybrid, encoded, 1) == [ids[:1] for ids in cut]


def test_a_prompt_longer_than_a_call_is_read_in_pieces(
    opened: Callable[[str, str], tuple[SpeechModel, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hybrid, _ = opened("qwen2_audio", "gguf-q8_0")
    encoded = encode(hybrid)
    whole = generate(hybrid, encoded, 8)
    monkeypatch.setattr("sordino.models.llama_cpp.BATCH_TOKENS", 37)
    assert generate(hybrid, encoded, 8) == whole


def test_types_and_bytes_are_those_of_llama_cpps_own_tool(
    opened: Callable[[str, str], tuple[SpeechModel, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(layout.FORMATS, "gguf-f32", "F32")
    _, plain = opened("qwen2_audio", "gguf-f32")
    api = Library.get().api
    options = api.llama_model_quantize_default_params()
    options.ftype, options.nthread = api.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
    out = tmp_path / "decoder.gguf"
    code = api.llama_model_quantize(str(plain / "decoder.gguf").encode(), str(out).encode(), ctypes.byref(options))
    assert code == 0
    _, ours = opened("qwen2_audio", "gguf-q4_k_m")
    theirs, found = read_header(out).tensors, read_header(ours / "decoder.gguf").tensors
    assert {n: (t.dtype, t.shape) for n, t in theirs.items()} == {n: (t.dtype, t.shape) for n, t in found.items()}
    mine = unpacked(ours)
    assert all(torch.equal(weight, mine[name]) for name, weight in unpacked(tmp_path).items())


def test_k_types_have_the_bytes_of_ggml(tmp_path: Path) -> None:
    """Rows of 256, which the pico models have not: gguf unpacks what ggml packed."""
    rows = torch.randn(5, 512, generator=torch.Generator().manual_seed(1)).numpy()
    for kind, error in (("Q4_K", 0.4), ("Q6_K", 0.15), ("Q5_0", 0.3)):
        packed = gguf._quantized(rows, kind)
        back = package.quants.dequantize(packed, package.GGMLQuantizationType[kind])
        assert abs(back - rows).max() < error
        assert abs(back - rows).max() > 0


def test_what_is_damaged_is_refused(
    opened: Callable[[str, str], tuple[SpeechModel, Path]], pico: Callable[[str], SpeechModel], tmp_path: Path
) -> None:
    _, directory = opened("qwen2_audio", "gguf-q8_0")
    model = tmp_path / "model"
    shutil.copytree(directory, model)
    decoder = model / "decoder.gguf"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:-200])
    with pytest.raises(FamilyError, match=r"llama\.cpp does not load .*decoder\.gguf: .+"):
        open_model(str(model), device="cpu")
    decoder.unlink()
    with pytest.raises(FamilyError, match=r"lacks decoder\.gguf, its decoder"):
        open_model(str(model), device="cpu")
    decoder.write_bytes(whole)
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["vocab_size"] += 1
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(FamilyError, match="of different vocabularies"):
        open_model(str(model), device="cpu")
    with pytest.raises(ValueError, match="greedy"):
        generate(opened("qwen2_audio", "gguf-q8_0")[0], encode(pico("qwen2_audio")), 2, sampling=object())  # type: ignore[arg-type]


def test_an_export_of_before_translates_as_it_did(
    opened: Callable[[str, str], tuple[SpeechModel, Path]], tmp_path: Path
) -> None:
    """Encoder and projector were called model.safetensors once."""
    hybrid, directory = opened("qwen2_audio", "gguf-q8_0")
    old = tmp_path / "old"
    shutil.copytree(directory, old)
    (old / "encoder.safetensors").rename(old / "model.safetensors")
    encoded = encode(hybrid)
    assert generate(open_model(str(old), device="cpu", dtype="float32"), encoded, 8) == generate(hybrid, encoded, 8)


def test_threads_and_layers_are_those_of_the_model(opened: Callable[[str, str], tuple[SpeechModel, Path]]) -> None:
    hybrid, _ = opened("qwen2_audio", "gguf-q8_0")
    assert registry.layer_count(hybrid.model.config, "decoder") == 4
    assert hybrid.dtype == torch.float32
    assert len(hybrid.layers("decoder")) == 0
