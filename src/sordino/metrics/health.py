"""What is wrong with outputs before any score is read: counts of the faults that users of translations meet.

Overlap scores hide them: one looping output in a hundred moves chrF by little and ruins a subtitle file. Each
rule is a plain test on one text, kept coarse so that a count above zero is worth a look. A fault that the
clip's reference shows too is not counted: then it is how the text is. See `Health` for the rules.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sordino.errors import DataError
from sordino.languages import language_code
from sordino.metrics.base import check_pairs

LOOP_TIMES = 4  # the same n-gram this often in a row is a loop
LOOP_UNITS = 40  # longest n-gram looked for, in characters
COMPRESSION = 2.4  # zlib ratio above which Whisper's decoding calls a text repetitive (Radford et al., 2022)
COMPRESSION_BYTES = 200  # shorter texts compress badly whatever they say
LENGTH_RATIO = 2.0  # characters, longer or shorter than the reference by more than this
LENGTH_CHARACTERS = 10  # references below this are too short for a ratio
EXAMPLES = 5  # ids kept per rule
COPIED_WORDS = 4  # fewer words are names as often as not
COPIED_SHARE = 0.6  # of a text's words, taken over from the source though the reference has them not
FOREIGN_WORDS = 3  # function words of another language, and none of the target's

SCRIPTS = {  # first words of Unicode's character names
    "zh": {"CJK"}, "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}, "ko": {"HANGUL"},
    "ar": {"ARABIC"}, "fa": {"ARABIC"}, "ru": {"CYRILLIC"}, "uk": {"CYRILLIC"}, "hi": {"DEVANAGARI"},
    "ta": {"TAMIL"},
}  # fmt: skip
LATIN = ("cs", "de", "en", "es", "fr", "id", "it", "nl", "pl", "pt", "sv", "tr", "vi")
SCRIPTS |= {code: {"LATIN"} for code in LATIN}

# Frequent function words that none of the other languages here writes alike: enough to tell whole sentences apart
FUNCTION_WORDS = {
    "de": "und der das ist nicht ein eine wir sie mit auf für auch sich dem von zu wird werden aber",
    "en": "the and of to that is it for with this are we you have not but they which from was",
    "es": "el los las y por pero muy este esta son como más también nosotros hay ser",
    "fr": "le les et est une des dans pour avec pas nous vous qui sur ce cette mais sont très ont",
    "it": "il gli di che è per non una questo questa sono anche della nel ma molto più ci",
    "nl": "het een van niet zijn wij voor met maar ook dat deze wordt naar bij heeft hebben je ik",
    "pt": "os as em não uma com mas isso são também muito você nós é ao pela seu",
}
WORD = re.compile(r"[^\W\d_]+")
LOOP = re.compile(rf"(\S.{{1,{LOOP_UNITS - 1}}}?)\1{{{LOOP_TIMES - 1},}}", re.DOTALL)
PUNCTUATION = re.compile(r"[\W_]+")  # "no, no, no, no." loops like "no no no no "
PREAMBLE = re.compile(
    r"""\W*(?:(?:sure|certainly|of\ course|okay|natürlich|gerne?)\b[,.!:\s]+)?(?:
        (?:here\ is\ )?the\ (?:\w+\ )?translation\b | (?:\w+\ )?translation: | (?:in|auf)\ (?:german|deutsch):
      | the\ (?:original\ content|speech\ is|audio\ (?:says|is)|speaker\ says)
      | (?:hier\ ist\ )?(?:die|meine)\ (?:\w+\ )?übersetzung\b | (?:\w+\ )?übersetzung:
      | (?:voici\ )?la\ traduction\b | (?:aquí\ está\ )?la\ traducción\b | (?:ecco\ )?la\ traduzione\b
      | (?:\w+\ )?translation\ (?:in)?to\ \w+: | [这這]段.{0,10}(?:内容|內容|意思).{0,4}[:：]
      | (?:以下是|这是|這是).{0,12}(?:翻译|翻譯|译文|譯文) | (?:中文)?(?:翻译|翻譯|译文|譯文)(?:如下|是|为|為)?\s*[:：]
    )""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Health:
    """Counts of faulty outputs, and the ids of the first few clips of each kind.

    empty: nothing but white space. newline: a line break inside the text. repetition: the same 2 to 40 characters
    4 times or more in a row, or 200 bytes and more that zlib shrinks over 2.4 times. preamble: opens with words
    about the translation ("The translation is", "Die Übersetzung lautet", "翻译："). script: fewer than half of
    the letters are of the target language's script (only for languages whose script is known). length: over
    twice, or under half, the reference's characters (references of 10 characters and more; empty ones aside).
    untranslated: 4 words and more, over 60 % of them the source's and not the reference's (only where the source
    text is known). language: at least 3 function words of another European language and none of the target's; it
    tells seven languages apart, whole sentences only, and knows nothing of any other.
    """

    segments: int
    counts: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    @property
    def total(self) -> int:
        """Faults in all; an output with two of them counts twice."""
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values that json.dumps takes; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Health:
        """The Health that `to_json` wrote."""
        examples = {rule: tuple(ids) for rule, ids in record["examples"].items()}
        return cls(int(record["segments"]), dict(record["counts"]), examples)


def is_repetitive(text: str) -> bool:
    """A loop of one n-gram, or a text that compresses as only loops do."""
    if LOOP.search(PUNCTUATION.sub(" ", text).strip() + " "):
        return True
    raw = text.encode()
    return len(raw) >= COMPRESSION_BYTES and len(raw) / len(zlib.compress(raw)) > COMPRESSION


def is_wrong_script(text: str, scripts: set[str]) -> bool:
    """Fewer than half of the letters belong to the scripts named as Unicode names their characters."""
    letters = [unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha()]
    return bool(letters) and 2 * sum(script in scripts for script in letters) < len(letters)


def is_odd_length(text: str, reference: str) -> bool:
    """Over LENGTH_RATIO times longer or shorter than the reference, in characters."""
    length, usual = len(text.strip()), len(reference.strip())
    return length > 0 and usual >= LENGTH_CHARACTERS and not usual / LENGTH_RATIO <= length <= usual * LENGTH_RATIO


def words(text: str) -> list[str]:
    """Runs of letters, case folded."""
    return [match.casefold() for match in WORD.findall(text)]


def is_untranslated(text: str, source: str, reference: str) -> bool:
    """Most words are the source's, and are not words that the reference leaves as they are (names, numbers)."""
    own = words(text)
    copied = set(words(source)) - set(words(reference))
    return len(own) >= COPIED_WORDS and sum(word in copied for word in own) > COPIED_SHARE * len(own)


def is_wrong_language(text: str, target: str) -> bool:
    """Function words of another language and none of the target's; False for targets without a list."""
    if target not in FUNCTION_WORDS:
        return False
    own = words(text)
    hits = {code: sum(word in FUNCTION_WORDS[code].split() for word in own) for code in FUNCTION_WORDS}
    return hits.pop(target) == 0 and max(hits.values()) >= FOREIGN_WORDS


def faults(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str,
    ids: Sequence[str],
    sources: Sequence[str | None] | None = None,
) -> dict[str, list[str]]:
    """Rule -> ids of the outputs that break it. Raises DataError where lengths differ or the set is empty."""
    check_pairs(hypotheses, references)
    for what, column in (("clip ids", ids), ("source texts", sources or hypotheses)):
        if len(column) != len(hypotheses):
            raise DataError(f"{len(hypotheses)} translations came with {len(column)} {what}.", "Give one per clip.")
    target = language_code(target_lang)
    scripts = SCRIPTS.get(target, set())
    rules: dict[str, Callable[[str], bool]] = {
        "empty": lambda text: not text.strip(),
        "newline": lambda text: len(text.splitlines()) > 1,
        "repetition": is_repetitive,
        "preamble": lambda text: PREAMBLE.match(text) is not None,
        "script": lambda text: bool(scripts) and is_wrong_script(text, scripts),
        "language": lambda text: is_wrong_language(text, target),
    }
    broken: dict[str, list[str]] = {rule: [] for rule in [*rules, "length", "untranslated"]}
    spoken = sources or [None] * len(ids)
    for name, text, reference, source in zip(ids, hypotheses, references, spoken, strict=True):
        for rule, is_faulty in rules.items():
            if is_faulty(text) and not is_faulty(reference):
                broken[rule].append(name)
        if is_odd_length(text, reference):
            broken["length"].append(name)
        if source and is_untranslated(text, source, reference):
            broken["untranslated"].append(name)
    return broken


def check(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str,
    ids: Sequence[str],
    sources: Sequence[str | None] | None = None,
) -> Health:
    """Count the faults of one system's outputs. Raises DataError as `faults` does."""
    broken = faults(hypotheses, references, target_lang, ids, sources)
    return Health(
        segments=len(hypotheses),
        counts={rule: len(names) for rule, names in broken.items()},
        examples={rule: tuple(names[:EXAMPLES]) for rule, names in broken.items()},
    )
