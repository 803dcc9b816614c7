"""vLLM itself, in an environment of its own: the tokens that transformers gives, of w4a16 and from embeddings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.whisper.modeling_whisper import sinusoids

from sordino.data import corpora
from sordino.data.audio import load_clip
from sordino.errors import ArtifactError
from sordino.formats import w4a16
from sordino.models import loading, vllm
from sordino.models.family import AudioInputs
from sordino.models.features import Features
from sordino.models.generation import generate
from tests import tiny

ROOT = Path(__file__).parents[2]
TOKENS = 24
MARGIN = 0.5  # of logits of about 10 to 20: vLLM multiplies in bfloat16, whose steps are 0.06 there

NO_KERNEL = "'_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'"


@pytest.fixture(scope="module")
def python() -> Path:
    """Python of vLLM's environment: SORDINO_VLLM, or .vllm in the checkout, made there where it is missing."""
    directory = Path(os.environ.get("SORDINO_VLLM", ROOT / ".vllm")).absolute()
    made = subprocess.run([ROOT / "benchmarks" / "vllm_env.sh", directory], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"vLLM could not be installed: {' '.join(made.stderr.strip().splitlines()[-2:])}")
    return directory / "bin" / "python"


def half_a_minute(directory: Path) -> Path:
    """The demo's base model with a window of 30 s, the only one vLLM takes: positions that short clips never use."""
    shutil.copytree(ROOT / "demo" / "base", directory)
    weights = load_file(directory / "model.safetensors")
    table = weights["audio_tower.embed_positions.weight"]
    beyond = sinusoids(1500, table.shape[1])[len(table) :]
    weights["audio_tower.embed_positions.weight"] = torch.cat([table, beyond.to(table.dtype)])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    for name, section, changes in (
        ("config.json", "audio_config", {"max_source_positions": 1500}),
        (
            "processor_config.json",
            "feature_extractor",
            {"chunk_length": 30, "n_samples": 480_000, "nb_max_frames": 3000},
        ),
    ):
        content = json.loads((directory / name).read_text())
        content[section] |= changes
        (directory / name).write_text(json.dumps(content))
    return directory


@pytest.mark.isolated
def test_vllm_gives_the_tokens_of_the_dequantized_weights(python: Path, tmp_path: Path) -> None:
    model = tmp_path / "w4a16"
    model.mkdir()
    w4a16.write(str(half_a_minute(tmp_path / "base")), model)
    speech = loading.load_checkpoint(str(model), device="cpu", dtype="float32")  # the dequantized weights
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    corpus = corpora.load("folder", str(ROOT / "demo" / "corpus"), "en", "de")
    waves = [load_clip(clip) for clip in corpus.clips[:3]]
    clips = []
    for i, wave in enumerate(waves):
        np.save(tmp_path / f"{i}.npy", wave)
        clips.append({"prompt": prompt, "wave": str(tmp_path / f"{i}.npy")})
    job = {"model": str(model), "tokens": TOKENS, "clips": clips}
    (tmp_path / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("vllm_greedy.py")
    command = [python, script, tmp_path / "job.json", tmp_path / "out.json"]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    ran = subprocess.run(command, capture_output=True, text=True, env=kept, check=False)
    said = ran.stdout + ran.stderr
    assert "CPUWNA16LinearKernel for CompressedTensorsWNA16" in said and "Loading weights took" in said, said[-3000:]
    if NO_KERNEL in said:
        pytest.skip(f"vLLM loads the model, and its 4-bit kernel needs AVX-512, which this CPU lacks: {NO_KERNEL}")
    assert ran.returncode == 0, said[-3000:]
    for wave, row in zip(waves, json.loads((tmp_path / "out.json").read_text()), strict=True):
        encoded = tiny.ask(speech, [wave])
        assert row["prompt"] == encoded.input_ids[0]  # audio tokens included
        answered = AudioInputs([[*encoded.input_ids[0], *row["answer"]]], encoded.audio)
        logits = tiny.logits(speech, answered)[0, len(row["prompt"]) - 1 : -1]
        chosen = logits.gather(-1, torch.tensor(row["answer"])[:, None])[:, 0]
        behind = logits.amax(-1) - chosen  # 0 where transformers chooses the same
        print(f"same {int((behind == 0).sum())} of {len(behind)}, largest margin {float(behind.max()):.3f}")
        assert len(row["answer"]) > 2
        assert float(behind.max()) <= MARGIN


@pytest.mark.isolated
@pytest.mark.parametrize(("form", "dtype"), [("bf16", "float32"), ("w4a16", "bfloat16")])
def test_prompts_as_embeddings_give_our_tokens(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: str
) -> None:
    """As engine vllm decodes: in float32 the same tokens; in 4 bits, in which kernels round differently, nearly all."""
    monkeypatch.setenv("SORDINO_VLLM", str(python.parents[1]))
    model = ROOT / "demo" / "base"
    if form != "bf16":
        model = tmp_path / form
        model.mkdir()
        w4a16.write(str(ROOT / "demo" / "base"), model)
    speech = loading.load_checkpoint(str(model), device="cpu", dtype=dtype)
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    clips = corpora.load("folder", str(ROOT / "demo" / "corpus"), "en", "de").clips[:12]
    ours = generate(speech, Features(speech, None).encode_all(clips, prompt), TOKENS)
    outside = vllm.load(str(model), device="cpu", dtype=dtype, max_new_tokens=TOKENS, room=tmp_path / "room")
    assert isinstance(outside.external_decoder, vllm.VllmDecoder)
    try:
        theirs = generate(outside, Features(outside, None).encode_all(clips, prompt), TOKENS)
    except ArtifactError:
        if NO_KERNEL in (tmp_path / "room" / "worker.log").read_text():
            pytest.skip(f"vLLM's 4-bit kernel needs AVX-512, which this CPU lacks: {NO_KERNEL}")
        raise
    finally:
        outside.external_decoder.close()
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{form}: {same} of {len(clips)} the same")
    assert sum(map(len, ours)) > 50
    assert same == len(clips) if dtype == "float32" else same >= len(clips) // 2
