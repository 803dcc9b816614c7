"""One code for a language, however it is written."""

from __future__ import annotations

import pytest

from sordino.languages import has_spaces, language_code, language_name, language_tag, spellings


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("de", "de"), ("German", "de"), (" german ", "de"), ("de-AT", "de"), ("DE_ch", "de"), ("deu", "de"),
        ("deu_Latn", "de"), ("zh", "zh"), ("Chinese", "zh"), ("zh-CN", "zh"), ("zh_TW", "zh"), ("zh-Hans", "zh"),
        ("zho_Hant", "zh"), ("Chinese (Taiwan)", "zh"), ("Mandarin Chinese", "zh"), ("ja-JP", "ja"), ("pt_BR", "pt"),
        ("Simplified Chinese", "zh"), ("ms-ID", "ms-id"), ("es-AR", "es"),
        ("Swahili", "swahili"), ("sw-KE", "sw-ke"), ("yue", "yue"), ("Cantonese", "cantonese"),
    ],
)  # fmt: skip
def test_every_spelling_is_one_code(written: str, code: str) -> None:
    assert language_code(written) == code


def test_names_and_tags_stay_as_written() -> None:
    """A model was asked with this name while it was trained, and a run has this directory."""
    assert [language_name(word) for word in ("de", "german", "zh-CN", "Swahili")] == [
        "German", "German", "zh-CN", "Swahili",
    ]  # fmt: skip
    assert [language_tag(word) for word in ("German", "de", "zh-CN", "Swahili")] == ["de", "de", "zh-cn", "swahili"]


def test_languages_without_spaces() -> None:
    assert not any(map(has_spaces, ("zh", "zh-CN", "zh_TW", "Chinese", "ja-JP", "jpn", "Thai", "km", "th-TH", "yue")))
    assert all(map(has_spaces, ("de", "ko", "Korean", "vi", "Swahili", "ar-EG")))


def test_spellings_of_files() -> None:
    assert spellings("zh-CN") == ("zh-CN", "zh-cn", "zh")
    assert spellings("German") == ("German", "german", "de")
    assert spellings("de") == ("de",)
