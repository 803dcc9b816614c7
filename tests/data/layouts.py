"""Small local copies of published corpora, in their exact layouts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from .sounds import save, tone

ACL_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<refset setid="acl" srclang="English" refid="ref">\n'
WORDS = {"en": "Sentence", "de": "Satz", "zh": "句子"}
COVOST = [  # path, sentence, translation, split, client_id
    ("common_voice_en_1.mp3", "Hello there.", "Hallo.", "train", "a" * 128),
    ("common_voice_en_2.mp3", 'He said "no".', 'Er sagte "nein".', "train_covost", "a" * 128),
    ("common_voice_en_3.mp3", "Good morning.", "Guten Morgen.", "dev", "b" * 128),
    ("common_voice_en_4.mp3", "Good night.", "Gute Nacht.", "test", "c" * 128),
]


def seconds(number: int) -> float:
    """Length of the n-th made clip."""
    return round(0.4 + 0.1 * (number % 4), 1)


def acl_release(folder: Path, talks: Mapping[str, Mapping[str, int]], languages: Sequence[str] = ("en", "de")) -> Path:
    """The release with so many segments of each talk: XML that is no XML, and one recording a segment."""
    for subset, segments in talks.items():
        root = folder / "2" / "acl_6060" / subset
        (root / "text" / "xml").mkdir(parents=True)
        (root / "segmented_wavs" / "gold").mkdir(parents=True)
        (root / "segmented_wavs" / "shas").mkdir()
        total = sum(segments.values())
        for number in range(1, total + 1):
            save(root / "segmented_wavs" / "gold" / f"sent_{number}.wav", tone(seconds(number)))
        for language in languages:
            lines, number = [ACL_HEAD], 0
            for talk, count in segments.items():
                lines.append(f'<doc docid="{talk}" genre="presentations">\n<talkid>{talk}</talkid>\n')
                lines.append("<abstract>On V&L models.</abstract>\n")
                for _ in range(count):
                    number += 1
                    lines.append(f'<seg id="{number}">{WORDS[language]} {number} &amp; more. </seg>\n')
                lines.append("</doc>\n")
            text = "".join([*lines, "</refset>\n</mteval>\n"])
            (root / "text" / "xml" / f"ACL.6060.{subset}.en-xx.{language}.xml").write_text(text, encoding="utf-8")
    return folder


def acl_rows(
    folder: Path, numbers: Sequence[int], languages: Sequence[str] = ("en", "de", "zh")
) -> list[dict[str, Any]]:
    """Rows as the Hub has them; numbers: of sent_N, so that the index is one less."""
    rows = []
    for number in numbers:
        audio = save(folder / "bytes.wav", tone(seconds(number))).read_bytes()
        texts = {f"text_{language}": f"{WORDS[language]} {number} & more." for language in languages}
        rows.append({"index": number - 1, "audio": {"bytes": audio, "path": f"sent_{number}.wav"}, **texts})
    (folder / "bytes.wav").unlink()
    return rows


def acl_shard(file: Path, rows: list[dict[str, Any]], group: int = 4) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)
    return file


def covost(folder: Path, prepared: bool = True) -> Path:
    """CoVoST 2 English to German, with the tables of get_covost_splits.py or with the published ones."""
    (folder / "clips").mkdir(parents=True)
    for number, row in enumerate(COVOST):
        save(folder / "clips" / row[0], tone(1.0 + seconds(number), 48_000), 48_000)
    if prepared:
        for part in ("train", "dev", "test"):
            rows = ["path\tsentence\ttranslation\tclient_id"]
            rows += [f"{p}\t{s}\t{t}\t{c}" for p, s, t, split, c in COVOST if split.removesuffix("_covost") == part]
            tsv(folder / f"covost_v2.en_de.{part}.tsv", rows)
    else:
        tsv(
            folder / "covost_v2.en_de.tsv",
            ["path\ttranslation\tsplit"] + [f"{p}\t{t}\t{d}" for p, _, t, d, _ in COVOST],
        )
        head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"
        other = f"{'d' * 128}\tcommon_voice_en_9.mp3\tNot translated.\t2\t0\t\t\t"
        rows = [head, *(f"{c}\t{p}\t{s}\t2\t0\t\t\t" for p, s, _, _, c in COVOST), other]
        tsv(folder / "validated.tsv", rows)
    return folder


def tsv(file: Path, rows: Sequence[str]) -> Path:
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def mustc(folder: Path, parts: Sequence[str] = ("train", "dev", "tst-COMMON", "tst-HE"), each: int = 3) -> Path:
    """MuST-C English to German: one talk of two seconds a part, cut into segments of half a second."""
    for at, part in enumerate(parts):
        txt, wav = (folder / "en-de" / "data" / part / name for name in ("txt", "wav"))
        txt.mkdir(parents=True)
        wav.mkdir()
        save(wav / f"ted_{at}.wav", tone(2.0))
        lines = [
            f"- {{duration: 0.5, offset: {0.25 + 0.5 * i}, rW: 9, speaker_id: spk.{at}, uW: 0, wav: ted_{at}.wav}}"
            for i in range(each)
        ]
        tsv(txt / f"{part}.yaml", lines)
        tsv(txt / f"{part}.en", [f"Part {part}, line {i}." for i in range(each)])
        tsv(txt / f"{part}.de", [f"Teil {part}, Zeile\u2028{i}." for i in range(each)])
    return folder
