"""`sordino inspect`: what a checkpoint holds and its inefficiencies, without torch."""

import io
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sordino import cli
from sordino.errors import ArtifactError
from sordino.formats import nf4
from sordino.formats import registry as formats
from sordino.measure import size
from sordino.measure.audit import audit
from sordino.models import loading, registry, saving
from tests import tiny
from tests.models.test_shapes import QWEN2_AUDIO_7B


@pytest.fixture(scope="module")
def checkpoints(pico_dir, tmp_path_factory):
    """bf16 and nf4 of the pico Qwen2-Audio."""
    root = tmp_path_factory.mktemp("audit")
    speech = loading.load_checkpoint(str(pico_dir("qwen2_audio")), device="cpu", dtype=torch.bfloat16)
    speech.model.to(torch.bfloat16)
    saving.save(speech, root / "bf16")
    nf4.write(str(pico_dir("qwen2_audio")), root / "nf4")
    return root


@pytest.fixture
def copied(checkpoints, tmp_path):
    """Copies one of them for a test to spoil."""
    return lambda name: shutil.copytree(checkpoints / name, tmp_path / name)


def kinds(path):
    return {finding.kind: finding.bytes for finding in audit(path).findings}


def change(directory, change_tensors):
    tensors = load_file(directory / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["bf16", "nf4"])
def test_counts(checkpoints, name):
    audited, measured = audit(checkpoints / name), size.measure(checkpoints / name)
    assert (audited.parameters, audited.stored_elements) == (measured.logical_parameters, measured.stored_elements)
    assert (audited.weights_bytes, audited.directory_bytes) == (measured.weights_bytes, measured.directory_bytes)
    layers = [f"decoder.{i}" for i in range(tiny.DECODER_LAYERS)]
    assert list(audited.parts) == ["audio_encoder", "projector", "embedding", *layers, "head", "other"]
    for shares in (audited.parts, audited.storage):
        assert sum(share.parameters for share in shares.values()) == audited.parameters
        assert sum(share.elements for share in shares.values()) == audited.stored_elements
        assert sum(share.bytes for share in shares.values()) == sum(measured.bytes_by_dtype.values())
    assert audited.findings == ()
    assert audit(checkpoints / name / "model.safetensors").parts == audited.parts
    whole = {"bf16": ["BF16"], "nf4": ["BF16", "nf4 scales and tables", "nf4 weights"]}
    assert list(audited.storage) == whole[name]


PADDING = 64 * 5  # bytes that depend on the order of the tensors, which only the model knows
# the table of positions is stored in 16 bits and held in 32; modules that some layers have, and some have not
OTHERWISE = {("voxtral", "bf16"): 192_000, ("gemma4", "bf16"): 2000, ("gemma4", "nf4"): 2000}
OTHERWISE |= {
    ("audioflamingo3", "bf16"): 320,
    ("audioflamingo3", "nf4"): 384,
}  # multiples of 64; the cause was not sought


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_what_torch_would_save(pico_dir, tmp_path, family):
    """Of the model that stock transformers loads; a tied head shares its storage."""
    for name in ("bf16", "nf4"):
        directory = tmp_path / name
        directory.mkdir()
        formats.get(name).write(str(pico_dir(family)), directory)
        model_class = getattr(transformers, registry.get(family).model_class)
        buffer = io.BytesIO()
        torch.save(model_class.from_pretrained(directory, dtype="auto").state_dict(), buffer)
        difference = abs(audit(directory).torch_save_bytes - len(buffer.getvalue()))
        assert difference <= PADDING + OTHERWISE.get((family, name), 0)


def test_inspecting_imports_no_library_of_models_or_numbers(checkpoints):
    """Headers and names are enough, so that `inspect` answers at once on a machine of any size."""
    heavy = {"torch", "transformers", "numpy", "safetensors", "tokenizers", "bitsandbytes", "peft", "sacrebleu"}
    code = (
        "import sys; from sordino import cli; code = cli.main(['inspect', sys.argv[1]]);"
        f"print(code, sorted({heavy!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, checkpoints / "nf4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "no inefficiencies" in done.stdout


def test_leftovers_in_32_bits(copied, pico_dir):
    model = copied("nf4")

    def widen(tensors):
        for name in tensors:
            if "embed_tokens" in name or "lm_head" in name:
                tensors[name] = tensors[name].float()

    change(model, widen)
    inefficiencies = kinds(model)
    vocabulary = json.loads((model / "config.json").read_text())["text_config"]["vocab_size"]
    assert inefficiencies == {"32-bit leftovers": 2 * 2 * vocabulary * 64}
    assert re.search(r"2 tensors are left in 32 bits in a 4-bit checkpoint \(.*head", audit(model).findings[0].what)
    plain = audit(pico_dir("qwen2_audio"))
    assert kinds(pico_dir("qwen2_audio")) == {"32-bit": 2 * plain.parameters}


def test_tied_weights_stored_twice(copied):
    model = copied("bf16")
    config = json.loads((model / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (model / "config.json").write_text(json.dumps(config))
    assert kinds(model) == {"tied twice": 2 * config["text_config"]["vocab_size"] * 64}
    twice = audit(model)
    change(model, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    once = audit(model)
    assert once.findings == ()
    assert once.parameters == twice.parameters
    buffer = io.BytesIO()
    state = load_file(model / "model.safetensors")
    torch.save(state | {"lm_head.weight": state["language_model.model.embed_tokens.weight"].detach()}, buffer)
    assert abs(once.torch_save_bytes - len(buffer.getvalue())) < 9000  # of shorter names, and no modules


def test_a_stale_adapter_and_an_adapter_inside(copied):
    model = copied("bf16")
    save_file({"x.lora_A.weight": torch.zeros(4, 64)}, model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    assert kinds(model) == {"stale adapter": (model / "adapter_model.safetensors").stat().st_size}
    (model / "adapter_model.safetensors").unlink()
    change(model, lambda tensors: tensors.update({"a.lora_A.weight": torch.zeros(4, 64)}))
    assert kinds(model) == {"adapter": 4 * 64 * 4}


def test_other_forms_and_training_state(copied):
    model = copied("bf16")
    torch.save({"a": torch.zeros(100)}, model / "pytorch_model.bin")
    shutil.copy(model / "model.safetensors", model / "model-00001-of-00002.safetensors")
    (model / "optimizer.pt").write_bytes(bytes(500))
    (model / ".state").mkdir()
    (model / ".state" / "state.safetensors").write_bytes(bytes(700))
    (model / "checkpoint-10").mkdir()
    (model / "checkpoint-10" / "rng.pth").write_bytes(bytes(9))
    beside = sum((model / n).stat().st_size for n in ("pytorch_model.bin", "model-00001-of-00002.safetensors"))
    assert kinds(model) == {"duplicate weights": beside, "training state": 1209}
    audited = audit(model)
    assert audited.wasted_bytes == beside + 1209
    assert audited.directory_bytes - audited.weights_bytes > audited.wasted_bytes


def test_layers_that_the_config_does_not_count(copied):
    model = copied("bf16")
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (model / "config.json").write_text(json.dumps(config))
    layer = audit(model).parts["decoder.3"].bytes
    assert kinds(model) == {"uncounted layers": layer * (tiny.DECODER_LAYERS - 1)}


def test_missing_and_unknown(tmp_path):
    with pytest.raises(ArtifactError, match="there is no model"):
        audit(tmp_path / "gone")
    save_file({"a": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    assert audit(tmp_path).torch_save_bytes is None


def test_the_command(checkpoints, tmp_path, capsys):
    assert cli.main(["inspect", str(checkpoints / "nf4"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["audit"] == json.loads(json.dumps(audit(checkpoints / "nf4").to_json()))
    assert printed["size"]["weights_bytes"] == printed["audit"]["weights_bytes"]
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_AUDIO_7B))
    ask = ["inspect", "--config", str(tmp_path / "config.json")]
    assert cli.main(ask) == 0
    assert re.search(r"decoder\.0-31, each of 32 .* 202,395,648 ", capsys.readouterr().out)
    assert cli.main([*ask, "--json", "--decoder-layers", "24", "--vocabulary", "48000"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert f"{printed['layouts']['nf4-e4-h8']['bytes'] / 1e9:.2f}" == "3.16"
    for wrong in (["inspect"], [*ask, str(checkpoints)], ["inspect", "--config", str(tmp_path / "gone.json")]):
        assert cli.main(wrong) == 2
