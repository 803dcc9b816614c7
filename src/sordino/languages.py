"""Language names as prompts spell them, and codes as metrics and columns need them.

A recipe may say `de`, `German`, or any language not listed here by its English name: the prompt then uses the
name as given, and metrics use their defaults for languages written with spaces.
"""

import re

NAMES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fa": "Persian",
    "fr": "French", "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "ta": "Tamil",
    "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
CODES = {name.lower(): code for code, name in NAMES.items()}
# ISO 639-2 and 639-3, and other names, where they stand for one of the above
OTHERS = {
    "ar": "ara arb", "cs": "ces cze", "de": "deu ger deutsch", "en": "eng", "es": "spa castilian",
    "fa": "fas per pes farsi", "fr": "fra fre", "hi": "hin", "id": "ind", "it": "ita", "ja": "jpn", "ko": "kor",
    "nl": "nld dut flemish", "pl": "pol", "pt": "por", "ru": "rus", "sv": "swe", "ta": "tam", "tr": "tur",
    "uk": "ukr", "vi": "vie", "zh": "zho chi cmn mandarin",
}  # fmt: skip
ALL_CODES = {code: code for code in NAMES} | CODES
ALL_CODES |= {name: code for code, names in OTHERS.items() for name in names.split()}
SUBTAG = re.compile(r"[-_ (,]")  # behind a language: a script, a region ('zh-Hans', 'pt_BR', 'Chinese (Taiwan)')
UNSPACED = ("zh", "ja", "th", "lo", "km", "my", "yue", "thai", "lao", "khmer", "burmese", "cantonese")


def language_name(language: str) -> str:
    """English name of a language: 'de' -> 'German', 'german' -> 'German', 'Swahili' -> 'Swahili'."""
    key = language.strip().lower()
    return NAMES.get(key) or NAMES.get(CODES.get(key, ""), language.strip())


def language_code(language: str) -> str:
    """The code that metrics and columns go by: ISO 639-1 where it is listed here, whatever the spelling.

    'German', 'de-AT', 'deu', 'deu_Latn' -> 'de'; 'zh-CN', 'zh_TW', 'Simplified Chinese' -> 'zh'. A language that is not
    listed is its name in lower case.
    """
    key = language.strip().lower()
    first, *more = SUBTAG.split(key)
    names = ALL_CODES.get(key), ALL_CODES.get(first), *map(CODES.get, more)  # 'ms-ID' is not Indonesian
    return next(filter(None, names), key)


def language_tag(language: str) -> str:
    """As it was written, for names of runs: 'German' -> 'de', 'zh-CN' -> 'zh-cn'."""
    key = language.strip().lower()
    return key if key in NAMES else CODES.get(key, key)


def has_spaces(language: str) -> bool:
    """Whether spaces stand between the words of a language."""
    code = language_code(language)
    return code not in UNSPACED and SUBTAG.split(code, maxsplit=1)[0] not in UNSPACED


def spellings(language: str) -> tuple[str, ...]:
    """How files and columns may call a language, the most particular first: 'zh-CN' -> ('zh-CN', 'zh-cn', 'zh')."""
    written = language.strip()
    return tuple(dict.fromkeys((written, written.lower(), language_code(language))))
