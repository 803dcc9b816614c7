"""What today's transformers saves loads in those that the engines pin, vLLM's 5.16 to 5.20, with the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sordino.models import registry, stored
from sordino.models.speech import SpeechModel
from sordino.pruning import layers
from tests import tiny

pytestmark = [pytest.mark.isolated, pytest.mark.filterwarnings("ignore::UserWarning")]
SCRIPT = Path(__file__).parent / "older_transformers.py"
KEEP = {"decoder": [0, 2, 3], "encoder": [0, 2]}
# a later version made the rotary embedding of what sees a type of its own, which the saved config.json names
FAILS = {("5.16.1", "gemma4"): "KeyError: 'axial'"}
ALIKE = 1e-5  # of logits of about 10: other versions may add in another order


@pytest.fixture(scope="module", params=["5.16.1", "5.20.0"])
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That version of transformers with what it needs, in SORDINO_TRANSFORMERS or a temporary directory; torch
    is this environment's."""
    own = os.environ.get("SORDINO_TRANSFORMERS")
    directory = (Path(own) if own else tmp_path_factory.mktemp("transformers")) / request.param
    if not (directory / "transformers").is_dir():
        what = f"transformers=={request.param}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", directory, what]
        made = subprocess.run(pip, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"{what} could not be installed: {' '.join(made.stderr.strip().splitlines()[-1:])}")
    return directory


def test_pruned_checkpoints_load_with_the_same_logits(
    older: Path, pico: Callable[[str], SpeechModel], tmp_path: Path
) -> None:
    cases, expected = [], {}
    for family in registry.FAMILIES:
        place = tmp_path / family
        place.mkdir()
        model = stored.open_model(pico(family).path)
        for scope in model.speech.family.scopes:
            layers.prune(model.speech, scope, KEEP[scope])
        model.write_16bit(place, "pruning")
        speech = tiny.stock(pico(family), place, dtype=torch.float32)
        inputs = tiny.stock_inputs(speech, tiny.clip(1, 1.3), tiny.QUESTION.instruction)
        with torch.no_grad():
            expected[family] = speech.model(**inputs, use_cache=False).logits
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, place / "inputs.safetensors")
        files = {name: str(place / f"{name}.safetensors") for name in ("inputs", "logits")}
        cases.append({"class": speech.family.model_class, "model": str(place), **files})
    (tmp_path / "job.json").write_text(json.dumps(cases))
    environment = os.environ | {"PYTHONPATH": str(older), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, SCRIPT, tmp_path / "job.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == older.name
    for family, case, row in zip(registry.FAMILIES, cases, found["rows"], strict=True):
        if (older.name, family) in FAILS:
            assert row == {"error": FAILS[older.name, family]}
            continue
        assert row == {"missing_keys": [], "unexpected_keys": []}, family
        difference = (load_file(case["logits"])["logits"] - expected[family]).abs().max()
        print(f"{family}: largest difference of a logit {difference:.1e}")  # pytest -s shows it
        assert difference <= ALIKE * expected[family].abs().max(), family
