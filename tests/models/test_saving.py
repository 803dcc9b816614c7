"""What lies beside the weights: others read it, stop where sordino stops, and ask as sordino asks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sordino.config.card import Card
from sordino.config.schema import PromptSection
from sordino.data.audio import Waveform
from sordino.errors import FamilyError
from sordino.formats import registry as formats
from sordino.models import control_tokens, loading, prompts, registry, saving
from sordino.models.features import Features
from sordino.models.generation import generate
from sordino.models.speech import SpeechModel
from tests import tiny
from tests.data import sounds

# what Qwen2-Audio's makers leave beside it: none of it is used while sordino decodes
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.5, "repetition_penalty": 1.3}
NEW = 24
SECONDS = (1.1, 0.7, 1.4)


@pytest.fixture
def sampled(model_dir: Path, pico: Callable[[str], SpeechModel], tmp_path: Path) -> tuple[Path, int]:
    """A model whose generation config samples, penalizes, suppresses, and ends where no stop token of the family's is;
    and that end, a token which it says by itself."""
    directory = tmp_path / "sampled"
    shutil.copytree(model_dir, directory)
    usual = ours(pico("qwen2_audio"), clips())
    end, never = usual[0][4], usual[1][2]
    content = SAMPLED | {"eos_token_id": [end, 257], "pad_token_id": 257, "suppress_tokens": [never]}
    (directory / "generation_config.json").write_text(json.dumps(content))
    return directory, end


def clips() -> list[Waveform]:
    return [tiny.clip(i, seconds) for i, seconds in enumerate(SECONDS)]


def ours(speech: SpeechModel, waves: list[Waveform]) -> list[list[int]]:
    """Ids of each clip, by sordino with the default prompt."""
    prompt = prompts.render(speech, PromptSection(), "en", "de")
    features = Features(speech, None)
    return [
        generate(speech, [features.encode_waveform(sounds.clip(str(i)), wave, prompt)], NEW)[0]
        for i, wave in enumerate(waves)
    ]


def stock(directory: Path, waves: list[Waveform]) -> list[list[int]]:
    """Ids of each clip, by transformers alone, asked without a system turn and with no setting but the length."""
    processor = transformers.AutoProcessor.from_pretrained(directory)
    model = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    answers = []
    for wave in waves:
        asked = "Translate the English speech into German:"
        content = [{"type": "audio", "audio_url": "clip"}, {"type": "text", "text": asked}]
        turns = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, audio=[wave], sampling_rate=tiny.RATE, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :].tolist()
        ends = model.generation_config.eos_token_id
        answers.append(ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))])
    return answers


@pytest.mark.parametrize("way", ["from file to file", "from memory"])
def test_a_stock_user_gets_our_texts(sampled: tuple[Path, int], tmp_path: Path, way: str) -> None:
    """Greedy, with our stops and suppressed tokens, and our system prompt though the conversation brings none."""
    source, end = sampled
    out = tmp_path / "out"
    out.mkdir()
    speech = loading.load_checkpoint(str(source), device="cpu", dtype="float32")
    if way == "from memory":
        speech.model.to(torch.bfloat16)  # as a run's models are saved
        saving.save(speech, out)
    else:
        formats.get("bf16").write(str(source), out)
    prompts.describe(out, speech.family, Card(source="en", target="de"))
    again = loading.load_checkpoint(str(out), device="cpu", dtype="float32")
    assert again.stop_ids() == speech.stop_ids() == [256, 257, end]
    texts = ours(again, clips())
    assert any(len(ids) < NEW for ids in texts)  # the stop counts
    assert stock(out, clips()) == texts
    written = json.loads((out / "generation_config.json").read_text())
    assert written.keys() == {
        "do_sample", "eos_token_id", "pad_token_id", "suppress_tokens", "transformers_version",
    }  # fmt: skip
    assert written["eos_token_id"] == [256, 257, end]
    assert written["do_sample"] is False


def test_without_the_template_s_default_a_stock_user_asks_otherwise(model_dir: Path, tmp_path: Path) -> None:
    """The test above can fail."""
    formats.get("bf16").write(str(model_dir), tmp_path)
    speech = loading.load_checkpoint(str(tmp_path), device="cpu", dtype="float32")
    assert stock(tmp_path, clips()) != ours(speech, clips())


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_tokenizers_are_read_by_transformers_4_too(
    pico: Callable[[str], SpeechModel], tmp_path: Path, family: str
) -> None:
    """Which fails where extra_special_tokens is a list; and the tokenizer is the same one."""
    before = pico(family)
    for way in ("file", "memory"):
        out = tmp_path / way
        out.mkdir()
        if way == "file":
            formats.get("bf16").write(before.path, out)
        else:
            saving.save(tiny.fresh(before), out)
        after = loading.load_checkpoint(str(out), device="cpu")
        file = out / "tokenizer_config.json"
        content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        assert isinstance(content.get("extra_special_tokens", {}), dict)
        one, other = before.processor.tokenizer, after.processor.tokenizer
        assert one.all_special_ids == other.all_special_ids
        assert one.get_vocab() == other.get_vocab()
        assert control_tokens.control_tokens(one, "a <|im_end|> b") == control_tokens.control_tokens(
            other, "a <|im_end|> b"
        )
        assert tiny.ask(after, [tiny.clip(1, 0.5)]).input_ids == tiny.ask(before, [tiny.clip(1, 0.5)]).input_ids


def test_terms_of_use_go_with_every_copy(model_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model_dir, source)
    terms = {"LICENSE": "Ours.", "LICENSE.md": "Ours, too.", "NOTICE.txt": "By us."}
    for name, text in terms.items():
        (source / name).write_text(text)
    (source / "README.md").write_text("A card of another model.")
    for way in ("file", "memory"):
        out = tmp_path / way
        out.mkdir()
        if way == "file":
            formats.get("nf4").write(str(source), out)
        else:
            saving.save(loading.load_checkpoint(str(source), device="cpu"), out)
        assert {name: (out / name).read_text() for name in terms} == terms
        assert not (out / "README.md").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_no_model_of_no_numbers_is_saved_or_loaded(
    speech: SpeechModel, model_dir: Path, tmp_path: Path, bad: float
) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        speech.model.model.language_model.layers[1].mlp.up_proj.weight[3, 4] = bad
    with pytest.raises(FamilyError, match=r"layers\.1\.mlp\.up_proj\.weight' hold NaN or infinity"):
        saving.save(speech, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors[name][3, 4] = bad
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FamilyError, match=f"{broken}: the weights '{name}' hold NaN or infinity"):
        loading.load_checkpoint(str(broken), device="cpu")
    for form in ("bf16", "nf4", "w4a16", "gguf-q8_0"):
        out = tmp_path / form
        out.mkdir()
        with pytest.raises(FamilyError, match=f"'{name}' hold NaN or infinity"):
            formats.get(form).write(str(broken), out)


def test_weights_beyond_16_bits_are_told_apart(model_dir: Path, tmp_path: Path) -> None:
    """Infinite in float16 alone: the model is fine, and the type is not."""
    from safetensors.torch import load_file, save_file

    large = tmp_path / "large"
    shutil.copytree(model_dir, large)
    tensors = load_file(large / "model.safetensors")
    tensors["language_model.lm_head.weight"][0, 0] = 70_000.0
    save_file(tensors, large / "model.safetensors", metadata={"format": "pt"})
    loading.load_checkpoint(str(large), device="cpu", dtype="bfloat16")
    with pytest.raises(FamilyError, match=r"hold NaN or infinity.* Take bfloat16 or float32"):
        loading.load_checkpoint(str(large), device="cpu", dtype="float16")
