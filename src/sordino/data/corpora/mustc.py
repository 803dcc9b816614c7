"""MuST-C: TED talks with transcripts and translations (v1 to v3), for which English is the source.

    en-de/data/{train,dev,tst-COMMON,tst-HE}/        (the path may be that of en-de or of data, too)
      txt/train.yaml                                 - {duration: 3.5, offset: 16.08, speaker_id: spk.1, wav: ted_1.wav}
      txt/train.en  txt/train.de                     one line a segment
      wav/ted_1.wav ...                              one file a talk

Clips are slices of the talks, and the group is the talk. train, dev and tst-COMMON become train, dev and test; tst-HE
is read (as test) only where `subsets` names it.
"""

from pathlib import Path

from sordino.data.corpora import segments
from sordino.data.corpora.base import Corpus, Rows, Split, choose_subsets, text_of, visible, wrong_layout
from sordino.errors import DataError
from sordino.languages import language_code, language_name

NAME = "MuST-C"
PARTS: dict[str, Split] = {"train": "train", "dev": "dev", "tst-COMMON": "test", "tst-HE": "test"}
USUAL = "train", "dev", "tst-COMMON"


def load(
    path: str | Path,
    source_lang: str,
    target_lang: str,
    texts: str | None = None,
    *,
    subsets: tuple[str, ...] = (),
) -> Corpus:
    """Read one language pair of MuST-C. subsets: of train, dev, tst-COMMON, tst-HE; the first three where empty.

    Raises DataError for another layout (showing this one), a language that is not there, and lists and texts of
    different lengths. A missing talk, an empty translation and a bad time are `problems` of the row.
    """
    folder = Path(path).absolute()
    if texts is not None:
        raise DataError(f"{NAME}'s texts go by their names, but 'texts' says {texts!r}.", "Use 'subsets' instead.")
    source, target = language_code(source_lang), language_code(target_lang)
    pair = f"{source}-{target}"
    roots = folder / pair / "data", folder / "data", folder
    root = next((root for root in roots if any(_list(root, part).is_file() for part in PARTS)), None)
    if root is None:
        raise wrong_layout(NAME, folder, _layout(pair, source, target))
    there = [part for part in PARTS if _list(root, part).is_file()]
    usual = tuple(part for part in USUAL if part in there)
    rows = Rows()
    for part in choose_subsets(NAME, root, there, subsets or usual):
        txt, wav = root / part / "txt", root / part / "wav"
        if not wav.is_dir():
            raise wrong_layout(NAME, root / part, _layout(pair, source, target), "there is no wav directory")
        texts_of = _text(txt, part, source_lang), _text(txt, part, target_lang)
        segments.read(rows, _list(root, part), texts_of, (wav,), (source_lang, target_lang), f"{part}/", PARTS[part])
    return rows.corpus()


def _list(root: Path, part: str) -> Path:
    return root / part / "txt" / f"{part}.yaml"


def _text(txt: Path, part: str, language: str) -> Path:
    file = text_of(txt / f"{part}.yaml", language)
    if not file.is_file():
        others = (item for item in visible(txt, f"{part}.*") if item.suffix != ".yaml")
        languages = ", ".join(item.name.removeprefix(f"{part}.") for item in others)
        raise DataError(
            f"{txt} has no {file.name}, the texts in {language_name(language)}.",
            f"Languages found: {languages or 'none'}.",
        )
    return file


def _layout(pair: str, source: str, target: str) -> str:
    return (
        f"  {pair}/data/{{train,dev,tst-COMMON}}/txt/{{train,dev,tst-COMMON}}.yaml\n"
        f"  {pair}/data/{{train,dev,tst-COMMON}}/txt/{{train,dev,tst-COMMON}}.{{{source},{target}}}\n"
        f"  {pair}/data/{{train,dev,tst-COMMON}}/wav/ted_1.wav ..."
    )
