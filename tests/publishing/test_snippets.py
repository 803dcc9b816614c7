"""The code in a model's card, run on exports of random models: it loads them, and says what sordino says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

import sordino
from sordino.formats import registry as formats
from sordino.models import registry
from sordino.publishing import card, facts, snippets
from sordino.publishing.facts import HERE
from tests.stages.runs import Made
from tests.tiny import clip

Capsys = pytest.CaptureFixture[str]
STOCK = [name for name in registry.FAMILIES if registry.get(name).stock_call]
TOKENS = 8


def blocks(text: str, library: str, language: str = "python") -> list[str]:
    """Code of one library's section."""
    section = re.split(r"^##", text.split(f"### {library}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)\n```", section, re.DOTALL)


def run(code: str, capsys: Capsys) -> str:
    """What a block prints, with fewer tokens."""
    assert f"={snippets.NEW_TOKENS}" in code
    capsys.readouterr()
    exec(compile(code.replace(f"={snippets.NEW_TOKENS}", f"={TOKENS}"), "README.md", "exec"), {})
    return capsys.readouterr().out.strip("\n")


def described(directory: Path, form: str) -> str:
    return card.render(facts.read(directory, "tiny", HERE, None, "not scored.", form=form))


@pytest.fixture
def exported(
    tmp_path: Path, pico_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Path]:
    """Family, format -> an export of its random model, with a recording beside it, in the working directory."""

    def make(family: str, form: str) -> Path:
        directory = tmp_path / form
        directory.mkdir()
        formats.get(form).write(str(pico_dir(family)), directory)
        model = sordino.load(directory, to="German", dtype="float32")
        model.card.write(directory)
        soundfile.write(directory / "recording.wav", clip(3, 1.5), 16_000, subtype="FLOAT")
        monkeypatch.chdir(directory)
        return directory

    return make


@pytest.mark.parametrize("family", STOCK)
def test_transformers_says_what_sordino_says(family: str, exported: Callable[[str, str], Path], capsys: Capsys) -> None:
    directory = exported(family, "bf16")
    text = described(directory, "bf16")
    (code,) = blocks(text, "transformers")
    assert f"{registry.get(family).model_class}.from_pretrained" in code
    model = sordino.load(directory, dtype="float32")
    ours = sordino.translate(model, "recording.wav", max_new_tokens=TOKENS).text
    assert ours
    assert run(code.replace('"auto", device_map', '"float32", device_map'), capsys).strip() == ours
    assert run(code, capsys)  # as it stands, in bfloat16


@pytest.mark.parametrize("form", ["nf4", "w4a16"])
def test_quantized_exports_load_in_transformers(
    form: str, exported: Callable[[str, str], Path], capsys: Capsys
) -> None:
    text = described(exported("qwen2_audio", form), form)
    (install,) = blocks(text, "transformers", "sh")
    assert install.endswith({"nf4": " bitsandbytes", "w4a16": " compressed-tensors"}[form])
    (code,) = blocks(text, "transformers")
    assert run(code, capsys)


@pytest.mark.parametrize("family", STOCK)
def test_sordinos_own_code(family: str, exported: Callable[[str, str], Path], capsys: Capsys) -> None:
    directory = exported(family, "nf4")
    (code,) = blocks(described(directory, "nf4"), "sordino")
    call = 'sordino.translate(model, "recording.wav"'
    assert call in code
    capsys.readouterr()
    exec(compile(code.replace(call, f"{call}, max_new_tokens={TOKENS}"), "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip("\n")
    model = sordino.load(directory)
    assert printed == sordino.translate(model, directory / "recording.wav", max_new_tokens=TOKENS).text


def test_every_format_names_what_loads_it(made: Made, tmp_path: Path) -> None:
    libraries = {}
    for form in formats.FORMATS:
        text = described(made.model, form)
        libraries[form] = re.findall(r"^### (.+)$", text, re.MULTILINE)
        for code in re.findall(r"```python\n(.*?)\n```", text, re.DOTALL):
            compile(code, form, "exec")
    everywhere, stock, ours = ["transformers", "vLLM", "sordino"], ["transformers", "sordino"], ["sordino"]
    assert libraries == {
        "bf16": everywhere, "w4a16": everywhere, "w4a16-gptq": everywhere, "nf4": stock, "mixed": stock,
        "gguf-q8_0": ours, "gguf-q4_k_m": ours, "gguf-q4_0": ours,
    }  # fmt: skip
    assert "llama-cpp-python" in described(made.model, "gguf-q4_0")


def test_on_the_hub_the_code_names_the_repository(made: Made) -> None:
    text = card.render(facts.read(made.model, "small", "me/small", None, "not scored.", form="bf16"))
    assert 'path = "me/small"' in text
    assert 'LLM(model="me/small"' in text
    assert 'sordino.load(snapshot_download("me/small"))' in text
    assert "hf download me/small --local-dir small\nsordino translate small recording.wav" in text
    assert "vllm serve me/small" in text


def test_a_prompt_that_the_stock_processor_cannot_take(pico_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Voxtral's takes an instruction alone: a card with an example has no code that would leave it out."""
    directory = tmp_path / "model"
    shutil.copytree(pico_dir("voxtral"), directory)
    (directory / "sordino.json").write_text(
        '{"prompt": {"style": "chat", "system": null, "instruction": "Go:", "example": ["Yes.", "Ja."]},'
        ' "source": "en", "target": "de"}'
    )
    text = described(directory, "bf16")
    assert blocks(text, "transformers") == []
    assert "VoxtralForConditionalGeneration" in text
    assert "Ja." in text.split("```text\n")[1]
