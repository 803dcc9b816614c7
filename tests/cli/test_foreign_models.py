"""Models that look like one of ours and are not: one line that says why, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data import sounds
from tests.stages.runs import recipe_file, refusal, write_corpus
from tests.tiny import clip

CASES = {
    "code of its own": (
        "qwen2_audio", "config.json", {"model_type": "phi4mm", "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4"}},
        "models of type 'phi4mm' bring code of their own",
    ),
    "a mixture of experts": (
        "qwen2_5_omni", "config.json", {"model_type": "qwen3_omni_moe"},
        "models of type 'qwen3_omni_moe' are not supported: transformers fuses the experts",
    ),
    "an adapter for speech that is missing": (
        "phi4_multimodal", "config.json", {"has_lora_adapter": True}, "there is no speech-lora/adapter_config.json",
    ),
    "the layout of qwen-asr": (
        "qwen3_asr", "config.json", {"thinker_config": {"model_type": "qwen3_asr_thinker"}},
        "transformers does not load",
    ),
    "an adapter that is missing": (
        "granite_speech", "config.json", {"has_lora_adapter": True}, "there is no adapter_config.json",
    ),
    "an adapter that is not the model's": (
        "qwen3_asr", "adapter_config.json", {"peft_type": "LORA"}, "holds a whole model (config.json) and an adapter",
    ),
    "another family's processor": (
        "granite_speech", "processor_config.json", {"processor_class": "Qwen2AudioProcessor"},
        "is a Qwen2AudioProcessor, and this model needs GraniteSpeechProcessor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line(
    pico_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    family, name, changes, message = CASES[case]
    model = shutil.copytree(pico_dir(family), tmp_path / "model")
    file = model / name
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))
    sounds.save(tmp_path / "clip.flac", clip(1, 0.5))
    assert message in refusal(capsys, "translate", model, tmp_path / "clip.flac", "--to", "German")
    recipe = recipe_file(tmp_path / "recipe", model, write_corpus(tmp_path / "corpus"))
    assert message in refusal(capsys, "run", recipe)
    assert not list((tmp_path / "recipe").glob("runs/*/2*"))  # nothing has been trained
