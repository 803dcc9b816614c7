"""A model that benchmarks/grow.py enlarged computes what the small one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import grow
from sordino.checkpoint.reading import Checkpoint
from sordino.errors import FamilyError, UsageError
from sordino.models import loading
from sordino.models.speech import SpeechModel
from tests import tiny

TOKENS = 12
CLIPS = [tiny.clip(1, 0.7), tiny.clip(2, 1.3)]


def shape(small: Path, **sizes: int) -> dict[str, Any]:
    """Wider, deeper, more heads of twice the size, two query heads for each of keys, more tokens."""
    text = json.loads((small / "config.json").read_text())["text_config"]
    larger = {
        "hidden_size": 4 * text["hidden_size"], "intermediate_size": 3 * text["intermediate_size"],
        "num_hidden_layers": text["num_hidden_layers"] + 3, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": text["vocab_size"] + 70, "max_position_embeddings": 2048,
    }  # fmt: skip
    return {"architectures": ["Qwen2AudioForConditionalGeneration"], "text_config": larger | sizes}


def grown(small: Path, directory: Path, noise: float = 0.0, **sizes: int) -> SpeechModel:
    grow.grow(small, directory, shape(small, **sizes), dtype="float32", noise=noise, seed=0)
    return loading.load_checkpoint(str(directory), device="cpu", dtype="float32")


@torch.no_grad()
def last_hidden(speech: SpeechModel) -> torch.Tensor:
    states: torch.Tensor = speech.model(
        **tiny.embedded(speech, tiny.ask(speech, CLIPS)), use_cache=False, output_hidden_states=True
    ).hidden_states[-1]
    return states


def test_it_gives_the_small_models_tokens_and_hidden_states(model_dir: Path, tmp_path: Path) -> None:
    small = loading.load_checkpoint(str(model_dir), device="cpu", dtype="float32")
    large = grown(model_dir, tmp_path / "large", head_dim=64)
    assert large.layer_count("decoder") == small.layer_count("decoder") + 3
    before, after = last_hidden(small), last_hidden(large)
    width = before.shape[-1]
    assert float((after[..., :width] - before).abs().max()) <= 1e-5 * float(before.abs().max())
    assert not after[..., width:].any()
    tokens = [tiny.greedy(speech, tiny.ask(speech, CLIPS), TOKENS)[0].tolist() for speech in (small, large)]
    assert tokens[0] == tokens[1]
    assert len({token for row in tokens[0] for token in row}) > 4  # a lively model, not one that repeats itself


def test_every_new_token_scores_as_the_audio_placeholder(model_dir: Path, tmp_path: Path) -> None:
    large = grown(model_dir, tmp_path / "large")
    logits = tiny.logits(large, tiny.ask(large, CLIPS))
    unused = logits[..., large.placeholder_id()]
    assert torch.equal(logits[..., -70:], unused[..., None].expand(*unused.shape, 70))


def test_new_layers_are_missed_only_where_noise_is_asked_for(model_dir: Path, tmp_path: Path) -> None:
    small = loading.load_checkpoint(str(model_dir), device="cpu", dtype="float32")
    noisy = grown(model_dir, tmp_path / "noisy", noise=0.002)
    width = small.model.config.text_config.hidden_size
    changed = (last_hidden(noisy)[..., :width] - last_hidden(small)).abs().max()
    assert 1e-3 < float(changed) < 0.5 * float(last_hidden(small).abs().max())


def test_same_seed_same_bytes_whatever_the_block(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, elements in (("a", 2**24), ("b", 1000)):
        monkeypatch.setattr(grow, "BLOCK_ELEMENTS", elements)
        grow.grow(model_dir, tmp_path / name, shape(model_dir), dtype="bfloat16", noise=0.01, seed=3)
    a, b = (Checkpoint.open(tmp_path / name) for name in "ab")
    assert set(a.tensors) == set(b.tensors)
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.tensors)


def test_a_shape_that_does_not_fit_and_a_directory_in_use_are_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="heads of"):
        grow.grow(
            model_dir, tmp_path / "odd", shape(model_dir, num_attention_heads=2, num_key_value_heads=2),
            dtype="float32", noise=0, seed=0,
        )  # fmt: skip
    with pytest.raises(FamilyError, match="H is"):
        grow.grow(model_dir, tmp_path / "small", shape(model_dir, hidden_size=32), dtype="float32", noise=0, seed=0)
    assert not (tmp_path / "odd").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        grow.grow(model_dir, tmp_path / "used", shape(model_dir), dtype="float32", noise=0, seed=0)
