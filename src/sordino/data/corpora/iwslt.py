"""A test set as IWSLT hands it out: recordings, a YAML list of segments, and texts with one line a segment.

    tst2026/
      tst2026.yaml                      - {wav: talk_1.wav, offset: 16.08, duration: 3.5}
      tst2026.en  tst2026.de            one line a segment, in the order of the list
      talk_1.wav ...                    (or wav/talk_1.wav, or wavs/talk_1.wav)
      FILE_ORDER                        optional: names of the recordings, one a line

`texts` names the list where there are several. The group is the recording, and the source text may be missing. The
organisers' scripts put segments into the order of FILE_ORDER; a list in another order is refused, because no one could
tell which of the two orders the texts are in.
"""

import itertools
from pathlib import Path, PurePath

from sordino.data.corpora import order, segments
from sordino.data.corpora.base import AUDIO_SUFFIXES, Corpus, Rows, text_of, visible, wrong_layout
from sordino.errors import DataError
from sordino.languages import language_code, language_name

NAME = "a segmented test set"
AUDIO = "", "wav", "wavs"  # where recordings lie


def load(path: str | Path, source_lang: str, target_lang: str, texts: str | None = None) -> Corpus:
    """Read a list of segments with its texts. texts: the list's file name, where the folder holds several.

    Raises DataError for another layout (showing this one), no target texts, a list and texts of different lengths, and
    a list that is not in the order of FILE_ORDER.
    """
    folder = Path(path).absolute()
    file = _list(folder, texts, language_code(source_lang), language_code(target_lang))
    places = [folder / place for place in AUDIO if (folder / place).is_dir()]
    if (folder / order.NAME).is_file():
        _check_order(file, folder / order.NAME, places)
    target, source = (text_of(file, language) for language in (target_lang, source_lang))
    if not target.is_file():
        beside = sorted(item.name for item in visible(folder) if item.name.startswith(f"{file.stem}."))
        raise DataError(
            f"{folder} has no {target.name}, the translations into {language_name(target_lang)}.",
            f"Found: {', '.join(beside)}.",
        )
    rows = Rows()
    languages = source_lang, target_lang
    segments.read(rows, file, (source if source.is_file() else None, target), places, languages)
    return rows.corpus()


def _list(folder: Path, texts: str | None, source: str, target: str) -> Path:
    lists = sorted(item.name for item in visible(folder) if item.suffix in (".yaml", ".yml"))
    if texts in lists or (texts is None and len(lists) == 1):
        return folder / (texts or lists[0])
    listing = f"Found: {', '.join(lists) or 'none'}."
    if texts is not None:
        raise DataError(f"{folder / texts} is not a file.", f"Name the list of segments in 'texts'. {listing}")
    if lists:
        raise DataError(f"{folder} holds {len(lists)} lists of segments. {listing}", "Name one in 'texts'.")
    layout = f"  NAME.yaml    - {{wav: talk_1.wav, offset: 16.08, duration: 3.5}}\n  NAME.{source}  NAME.{target}"
    raise wrong_layout(NAME, folder, f"{layout}    one line a segment\n  talk_1.wav ... (or wav/talk_1.wav)")


def _check_order(file: Path, names: Path, places: list[Path]) -> None:
    wavs = [PurePath(entry.get("wav", "")).name for entry in segments.entries(file) if isinstance(entry, dict)]
    beside = [item.name for place in places for item in visible(place) if item.suffix.lower() in AUDIO_SUFFIXES]
    ranks = order.ranks(names, wavs, [name for name in beside if name not in wavs])
    for one, other in itertools.pairwise(ranks[wav] for wav in wavs):
        if one > other:
            raise DataError(
                f"{file} is not in the order of {order.NAME}, so it is not known in which order the texts are.",
                f"Put the list and the texts into one order, and remove {order.NAME}.",
            )
