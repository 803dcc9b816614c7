"""Prompts: the same text everywhere, templates that fail are named, and the default turn comes and goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from sordino.config import card
from sordino.config.card import Card
from sordino.config.schema import SYSTEM_PROMPT, PromptSection
from sordino.errors import FamilyError, RecipeError
from sordino.models import loading, prompts, registry
from sordino.models.speech import SpeechModel

FAMILIES = sorted(registry.FAMILIES)
WITH_DEFAULT = [name for name in FAMILIES if registry.get(name).chat.default_system]


def copied(speech: SpeechModel, directory: Path) -> Path:
    shutil.copytree(speech.path, directory)
    return directory


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% if %}", r"fails \(TemplateSyntaxError: "),
        ("{{ undefined.inner }}", r"fails \(UndefinedError: "),
        ("{{ raise_exception('No system here.') }}", r"fails \(TemplateError: No system here\)"),
        ("{{ ''.__class__.__mro__ }}", r"fails \(SecurityError: "),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"fails \(RecursionError: "),
        ("{{ 1 / 0 }}", r"fails \(ZeroDivisionError: "),
        ("no audio", "places 0 clips of audio, and not one"),
        ("<|AUDIO|> and <|AUDIO|>", "places 2 clips of audio, and not one"),
    ],
)
def test_chat_templates_that_fail_are_named(model_dir: Path, tmp_path: Path, template: str, what: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    (model / "chat_template.jinja").write_text(template)
    speech = loading.load_checkpoint(str(model), device="cpu")
    with pytest.raises(FamilyError, match=rf"{model}/chat_template\.jinja {what}"):
        prompts.render(speech, PromptSection(), "en", "de")


@pytest.mark.parametrize("place", ["instruction", "system", "example"])
def test_control_tokens_in_a_prompt_are_named_by_the_setting(pico: Callable[[str], SpeechModel], place: str) -> None:
    text = "Hear <|AUDIO|> now."
    section = PromptSection(**{place: ("a", text) if place == "example" else text})  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=rf"prompt\.{place}.* holds '<\|AUDIO\|>'"):
        prompts.render(pico("qwen2_audio"), section, "en", "de")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_holds_the_system_prompt_itself(
    pico: Callable[[str], SpeechModel], tmp_path: Path, family: str
) -> None:
    """`auto` may come to mean something else; and sordino asks as before."""
    speech = pico(family)
    out = copied(speech, tmp_path / "out")
    before = prompts.render(speech, PromptSection(), "en", "de")
    prompts.describe(out, speech.family, Card(source="en", target="de"))
    asked = card.read(out)
    assert asked.prompt.system == (SYSTEM_PROMPT if speech.family.chat.takes_system else None)
    again = loading.load_checkpoint(str(out), device="cpu")
    assert prompts.render(again, asked.prompt, "en", "de") == before
    assert prompts.render(again, PromptSection(), "en", "de") == before


@pytest.mark.parametrize("family", WITH_DEFAULT)
@pytest.mark.parametrize("system", [SYSTEM_PROMPT, 'Größe "{{ x }}" {% y %} \\n 你好 🎧 it\'s', "a\nb"])
def test_a_conversation_without_a_system_turn_gets_the_default(
    pico: Callable[[str], SpeechModel], tmp_path: Path, family: str, system: str
) -> None:
    speech = pico(family)
    out = copied(speech, tmp_path / "out")
    section = PromptSection(system=system)
    expected = prompts.render(speech, section, "en", "de")
    prompts.describe(out, speech.family, Card(section, "en", "de"))
    again = loading.load_checkpoint(str(out), device="cpu")
    # the family's own turns, without the system turn
    processor, tokenizer = again.processor, again.processor.tokenizer
    template = (processor if getattr(processor, "chat_template", None) else tokenizer).apply_chat_template
    turns: list[list[dict[str, object]]] = []

    def spy(conversation: list[dict[str, object]], **options: object) -> object:
        turns.append(conversation)
        return template([turn for turn in conversation if turn["role"] != "system"], **options)

    spied = processor if template.__self__ is processor else tokenizer
    assert prompts.render(again, PromptSection(system=None), "en", "de") == prompts.render(
        speech, PromptSection(system=None), "en", "de"
    )  # sordino asks without a system turn where none is asked for
    spied.apply_chat_template = spy
    spied.chat_template = (out / "chat_template.jinja").read_text()  # as stock transformers reads it
    assert prompts.render(again, section, "en", "de") == expected
    assert any(turn["role"] == "system" for turn in turns[0])


@pytest.mark.parametrize("plain", ["", "\n", "\n\n", "  "])
def test_the_default_turn_goes_without_a_trace(pico: Callable[[str], SpeechModel], tmp_path: Path, plain: str) -> None:
    """Written once however often a model is described; another prompt takes its place; none leaves the template."""
    speech = pico("qwen2_audio")
    out = copied(speech, tmp_path / "out")
    file = out / "chat_template.jinja"
    file.write_text(plain + file.read_text())
    before = file.read_text()
    asked = Card(source="en", target="de")
    prompts.describe(out, speech.family, asked)
    once = file.read_text()
    assert once.endswith(before)
    assert SYSTEM_PROMPT in once
    prompts.describe(out, speech.family, asked)
    assert file.read_text() == once
    prompts.describe(out, speech.family, Card(PromptSection(system="Other."), "en", "de"))
    assert SYSTEM_PROMPT not in file.read_text()
    assert file.read_text().count("sordino:") == 1
    processor = transformers.AutoProcessor.from_pretrained(out)
    content = [{"type": "audio", "audio_url": "x"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    whole = processor.apply_chat_template(
        [{"role": "system", "content": "Other."}, {"role": "user", "content": content}],
        tokenize=False,
        chat_template=before,
    )
    assert text == whole
    prompts.describe(out, speech.family, Card(PromptSection(system=None), "en", "de"))
    assert file.read_text() == before


def test_a_template_of_an_older_form_is_replaced(pico: Callable[[str], SpeechModel], tmp_path: Path) -> None:
    speech = pico("qwen2_audio")
    out = copied(speech, tmp_path / "out")
    template = (out / "chat_template.jinja").read_text()
    (out / "chat_template.jinja").unlink()
    (out / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    prompts.describe(out, speech.family, Card(source="en", target="de"))
    assert sorted(file.name for file in out.glob("chat_template*")) == ["chat_template.jinja"]
    assert (out / "chat_template.jinja").read_text().endswith(template)
    loading.load_checkpoint(str(out), device="cpu")
