"""Language names as prompts spell them, and codes as metrics and columns need them.

A recipe may say `de`, `German`, or any language not listed here by its English name: the prompt then uses the
name as given, and metrics use their defaults for languages written with spaces.
"""

NAMES = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fa": "Persian",
    "fr": "French", "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "ta": "Tamil",
    "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
UNSPACED = {"zh", "ja"}  # written without spaces between words
CODES = {name.lower(): code for code, name in NAMES.items()}


def language_name(language: str) -> str:
    """English name of a language: 'de' -> 'German', 'german' -> 'German', 'Swahili' -> 'Swahili'."""
    key = language.strip().lower()
    return NAMES.get(key) or NAMES.get(CODES.get(key, ""), language.strip())


def language_code(language: str) -> str:
    """ISO 639-1 code where it is known, else the name in lower case: 'German' -> 'de'."""
    key = language.strip().lower()
    return key if key in NAMES else CODES.get(key, key)


def has_spaces(language: str) -> bool:
    """Whether words stand between spaces: False for Chinese and Japanese, in any region ('zh-CN', 'Chinese')."""
    return language_code(language).replace("_", "-").split("-")[0] not in UNSPACED
