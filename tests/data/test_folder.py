"""The folder corpus: tables in three forms, and every bad row listed beside the good ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from sordino.data import corpora
from sordino.data.checks import check_audio
from sordino.data.corpora.folder import load
from sordino.errors import DataError, RecipeError

from .sounds import save, tone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    for name in ("a.wav", "b.wav", "wav/c.wav"):
        save(tmp_path / name, tone(1.0))
    return tmp_path


def table(folder: Path, text: str, name: str = "texts.tsv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder


def test_three_forms_of_the_same_table(folder: Path) -> None:
    forms = {
        "texts.tsv": 'audio\ttext_en\ttext_de\na.wav\tHi "you"\tHallo, "du"\nwav/c.wav\t\tSo\n',
        "texts.csv": 'audio,text_en,text_de\r\na.wav,"Hi ""you""","Hallo, ""du"""\r\nwav/c.wav,,So\r\n',
        "texts.jsonl": '{"audio": "a.wav", "text_en": "Hi \\"you\\"", "text_de": "Hallo, \\"du\\""}\n'
        '{"audio": "wav/c.wav", "text_en": null, "text_de": "So"}\n',
    }
    read = []
    for name, text in forms.items():
        table(folder, text, name, "utf-8-sig")
        read.append(load(folder, "English", "de"))
        (folder / name).unlink()
    assert read[0] == read[1] == read[2]
    first, second = read[0].clips
    assert (first.id, first.source_text, first.target_text) == ("a", 'Hi "you"', 'Hallo, "du"')
    assert (second.id, second.source_text, second.group, second.seconds) == ("wav/c", None, None, None)
    assert second.audio == str(folder / "wav" / "c.wav")
    assert read[0].problems == ()
    assert read[0].splits == {}
    good, bad = check_audio(read[0].clips)
    assert [one.seconds for one in good] == [1.0, 1.0]
    assert bad == []


def test_every_column(folder: Path) -> None:
    columns = "id\taudio\tstart\tseconds\ttalk_id\tsplit\tsource_text\ttarget_text\n"
    table(folder, columns + "x\ta.wav\t0.25\t0.5\t7\ttest\tHi\tHallo\n\ta.wav\t0.5\t\t7\t\t\tDu\n")
    corpus = load(folder, "en", "de")
    one, other = corpus.clips
    assert (one.id, one.start, one.seconds, one.group, one.source_text) == ("x", 0.25, 0.5, "7", "Hi")
    assert (other.id, other.start, other.seconds) == ("a-0.500", 0.5, None)
    assert corpus.splits == {"x": "test"}


def test_bad_rows_are_listed_and_good_ones_kept(folder: Path) -> None:
    rows = [
        "ok\ta.wav\t\ttrain\tHallo",
        "empty\ta.wav\t\ttrain\t ",
        "ok\tb.wav\t\ttrain\tNoch einmal",
        "up\t../a.wav\t\ttrain\tHallo",
        "through\twav/../../a.wav\t\ttrain\tHallo",
        "root\t/etc/passwd\t\ttrain\tHallo",
        "gone\tnone.wav\t\ttrain\tHallo",
        "long\t" + "x" * 300 + "\t\ttrain\tHallo",
        "time\ta.wav\tsoon\ttrain\tHallo",
        "minus\ta.wav\t-1\ttrain\tHallo",
        "nan\ta.wav\tnan\ttrain\tHallo",
        "split\ta.wav\t\tvalid\tHallo",
        "wide\ta.wav\t\ttrain\tHallo\tWelt",
        "short\ta.wav",
        "none\t\t\ttrain\tHallo",
        "ok2\twav/./c.wav\t\tdev\tHallo",
    ]
    table(folder, "id\taudio\tstart\tsplit\ttext_de\n" + "\n".join(rows) + "\n")
    corpus = load(folder, "en", "de")
    assert [one.id for one in corpus.clips] == ["ok", "ok2"]
    assert corpus.splits == {"ok": "train", "ok2": "dev"}
    expected = [
        ("empty", "target text (text_de) is empty"),
        ("ok", "'ok' is taken"),
        ("up", "out of the folder"),
        ("through", "out of the folder"),
        ("root", "out of the folder"),
        ("gone", "not a file"),
        ("long", "not a file"),
        ("time", "start must be a number"),
        ("minus", "negative"),
        ("nan", "finite"),
        ("split", "'valid' is none of train, select, dev, test"),
        ("wide", "6 cells under 5 columns"),
        ("short", "2 cells under 5 columns"),
        ("none", "audio path is empty"),
    ]
    assert [row.id for row in corpus.problems] == [name for name, _ in expected]
    for row, (_, problem) in zip(corpus.problems, expected, strict=True):
        assert problem in row.problem
    assert corpus.problems[0].problem.startswith("texts.tsv:3: ")


def test_unreadable_json_rows_are_listed(folder: Path) -> None:
    rows = [
        '{"audio": "a.wav", "text_de": "Hallo"}',
        "{cut",
        "[1]",
        '{"audio": "b.wav", "text_de": ["Hallo"]}',
        '{"audio": "wav/c.wav", "text_de": "\\ud800"}',
        '{"id": 7, "audio": "b.wav", "text_de": "Hallo", "start": 0.5}',
    ]
    corpus = load(table(folder, "\n".join(rows), "a.jsonl"), "en", "de")
    assert [(one.id, one.start) for one in corpus.clips] == [("a", 0.0), ("7", 0.5)]
    assert [row.id for row in corpus.problems] == ["line 2", "line 3", "b.wav", "line 5"]


def test_an_open_quote_does_not_swallow_rows_silently(folder: Path) -> None:
    corpus = load(table(folder, 'audio,text_de\na.wav,Hallo\nb.wav,"offen\nwav/c.wav,So\n', "a.csv"), "en", "de")
    assert [one.id for one in corpus.clips] == ["a"]
    assert [row.id for row in corpus.problems] == ["line 3"]


def test_tsv_has_no_quoting(folder: Path) -> None:
    corpus = load(table(folder, 'audio\ttext_de\na.wav\t"Ja" oder\nb.wav\t"offen\n'), "en", "de")
    assert [one.target_text for one in corpus.clips] == ['"Ja" oder', '"offen']


def test_a_column_with_empty_cells_is_there(folder: Path) -> None:
    corpus = load(table(folder, '{"audio": "a.wav", "text_de": ""}', "a.jsonl"), "en", "de")
    assert [row.id for row in corpus.problems] == ["a.wav"]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("sound\ttext_de", "lacks the column 'audio'"),
        ("audio\ttext_fr", "lacks the column 'text_de' or 'target_text'"),
        ("audio\ttext_de\ttext_de", "two columns 'text_de'"),
    ],
)
def test_missing_and_repeated_columns(folder: Path, header: str, problem: str) -> None:
    table(folder, header + "\n" + "\t".join("x" for _ in header.split("\t")) + "\n")
    with pytest.raises(DataError) as caught:
        load(folder, "en", "German")
    assert problem in caught.value.problem
    if "lacks" in problem:
        assert caught.value.remedy == f"Found: {', '.join(header.split())}."


def test_which_table(folder: Path) -> None:
    with pytest.raises(DataError, match="holds 0 tables"):
        load(folder, "en", "de")
    table(folder, "audio\ttext_de\na.wav\tHallo\n", "one.tsv")
    table(folder, "audio,text_de\nb.wav,Hallo\n", "two.csv")
    with pytest.raises(DataError, match=r"2 tables.*one\.tsv, two\.csv"):
        load(folder, "en", "de")
    assert load(folder, "en", "de", "two.csv").clips[0].id == "b"
    with pytest.raises(DataError, match=r"three\.csv is not a file.*one\.tsv, two\.csv"):
        load(folder, "en", "de", "three.csv")
    with pytest.raises(DataError, match="not a table"):
        load(folder, "en", "de", "a.wav")
    with pytest.raises(DataError, match="not a directory"):
        load(folder / "none", "en", "de")


def test_unusable_tables(folder: Path) -> None:
    table(folder, "audio\ttext_de\na.wav\tGrüße\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"texts\.tsv:2: byte 0xfc, which is not UTF-8"):
        load(folder, "en", "de")
    for text in ("", "audio\ttext_de\n"):
        table(folder, text)
        with pytest.raises(DataError, match="has no rows"):
            load(folder, "en", "de")


def test_missing_values_of_pandas_are_missing(folder: Path) -> None:
    rows = [
        '{"audio": "a.wav", "group": NaN, "text_en": NaN, "text_de": "Hallo"}',
        '{"audio": "b.wav", "group": NaN, "text_en": "Hi", "text_de": NaN}',
        '{"audio": "wav/c.wav", "group": NaN, "text_en": "Hi", "text_de": "So", "start": NaN, "seconds": Infinity}',
    ]
    corpus = load(table(folder, "\n".join(rows), "a.jsonl"), "en", "de")
    (clip,) = corpus.clips
    assert (clip.group, clip.source_text, clip.target_text) == (None, None, "Hallo")
    assert [(row.id, row.problem.split(": ", 1)[1]) for row in corpus.problems] == [
        ("b.wav", "the target text (text_de) is empty."),
        ("wav/c.wav", "seconds must be text or a number."),
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"audio": "a.wav", "text_de": "x", "start": 1e999}', "beyond every number"),
        ('{"audio": "a.wav", "text_de": "x", "start": 1e308}', "longer than any recording"),
        ('{"audio": "a.wav", "text_de": "x", "seconds": ' + "1" * 400 + "}", "hundreds of digits"),
        ('{"audio": "a.wav", "text_de": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ('{"audio": "a.wav", "text_de": {"a": 1}}', "must be text or a number"),
        ('{"audio": "x\\u001b[31m.wav", "text_de": "x"}', "x\\x1b[31m.wav is not a file"),
        ('{"audio": "' + "y" * 10**6 + '", "text_de": "x"}', "is not a file"),
    ],
)
def test_rows_that_nothing_could_work_with_are_listed(folder: Path, row: str, problem: str) -> None:
    corpus = load(table(folder, '{"audio": "b.wav", "text_de": "gut"}\n' + row, "a.jsonl"), "en", "de")
    assert len(corpus.clips) == 1
    (told,) = corpus.problems
    assert problem in told.problem
    assert len(told.problem) + len(told.id) < 2000
    assert (told.problem + told.id).isprintable()


@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_csv_by_any_delimiter(folder: Path, mark: str) -> None:
    text = f'audio{mark}text_en{mark}text_de\na.wav{mark}Hi{mark}"Hallo{mark} du"\n'
    (clip,) = load(table(folder, text, "a.csv"), "en", "de").clips
    assert clip.target_text == f"Hallo{mark} du"


def test_a_tsv_without_tabs_is_told(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no tab stands between its columns.*\.csv"):
        load(table(folder, "audio;text_de\na.wav;Hallo\n"), "en", "de")


@pytest.mark.parametrize(
    "header",
    [
        "path\tsentence\ttranslation\tclient_id",
        "Audio\tSource_Text\tTarget_Text\tspeaker",
        "audio_filepath\ttext_english\ttext_GER\tgroup",
        "file_name\ttranscription\ttext_de-AT\tspeaker_id",
    ],
)
def test_columns_by_the_names_of_other_tools(folder: Path, header: str) -> None:
    corpus = load(table(folder, f"{header}\na.wav\tHi\tHallo\ts1\n"), "en", "de")
    (clip,) = corpus.clips
    assert (clip.audio, clip.source_text) == (str(folder / "a.wav"), "Hi")
    assert (clip.target_text, clip.group) == ("Hallo", "s1")
    assert all("is read as" in note for note in corpus.notes)


def test_usual_names_go_before_those_of_other_tools(folder: Path) -> None:
    text = "path\taudio\ttranslation\ttext_de\toffset\tduration\tstart\nx\ta.wav\tfalsch\tHallo\t9\t9\t0.25\n"
    (clip,) = load(table(folder, text), "en", "de").clips
    assert (clip.audio, clip.target_text, clip.start, clip.seconds) == (str(folder / "a.wav"), "Hallo", 0.25, None)
    text = "audio\ttext_de\toffset\tduration\na.wav\tHallo\t0.25\t0.5\n"
    (clip,) = load(table(folder, text), "en", "de").clips
    assert (clip.start, clip.seconds) == (0.25, 0.5)


def test_a_near_name_is_suggested(folder: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'audoi'"):
        load(table(folder, "audoi\ttext_de\na.wav\tHallo\n"), "en", "de")
    with pytest.raises(DataError, match="Did you mean 'textde'"):
        load(table(folder, "audio\ttextde\na.wav\tHallo\n"), "en", "de")


def test_regions_of_a_language(folder: Path) -> None:
    table(folder, "audio\ttext_zh-CN\ttext_zh-TW\na.wav\t软件\t軟體\n")
    assert load(folder, "en", "zh-CN").clips[0].target_text == "软件"
    assert load(folder, "en", "zh-TW").clips[0].target_text == "軟體"
    with pytest.raises(DataError, match="'text_zh' or 'target_text'"):  # which of the two?
        load(folder, "en", "zh")
    table(folder, "audio\ttext_zh-CN\na.wav\t软件\n")
    assert load(folder, "en", "Chinese").clips[0].target_text == "软件"


def test_slices_of_one_recording_are_a_group(folder: Path) -> None:
    text = "audio\tstart\tseconds\ttext_de\n" + "".join(f"a.wav\t0.{i}\t0.1\tSatz {i}\n" for i in range(4))
    corpus = load(table(folder, text + "b.wav\t\t\tAllein\n"), "en", "de")
    assert [clip.group for clip in corpus.clips] == ["a.wav"] * 4 + [None]
    apart = text.replace("text_de\n", "text_de\tsplit\n")
    for split, groups in (("test", ["a.wav"] * 4), ("", [None] * 4)):
        rows = apart.replace("Satz 0\n", "Satz 0\ttest\n")
        rows = "".join(f"{r}\t{split}\n" if r.count("\t") == 3 else f"{r}\n" for r in rows.splitlines())
        assert [one.group for one in load(table(folder, rows), "en", "de").clips] == groups
    own = text.replace("text_de\n", "text_de\tgroup\n").replace("Satz 0", "Satz 0\tg").replace("\n", "\t\n")
    own = own.replace("group\t\n", "group\n").replace("\tg\t\n", "\tg\n")
    assert [clip.group for clip in load(table(folder, own), "en", "de").clips] == ["g"] + ["a.wav"] * 3


def test_a_tsv_whose_texts_look_quoted_is_noted(folder: Path) -> None:
    quoted = load(table(folder, 'audio\ttext_de\na.wav\t"Er sagte ""ja""."\nb.wav\tSo.\n'), "en", "de")
    assert quoted.clips[0].target_text == '"Er sagte ""ja""."'
    assert len(quoted.notes) == 1
    assert "1 texts look quoted" in quoted.notes[0]
    meant = load(table(folder, 'audio\ttext_de\na.wav\t"Ja", sagte er, "nein"\nb.wav\t"Ja"\n'), "en", "de")
    assert meant.notes == ()


def test_very_many_columns_are_read_in_one_go(folder: Path) -> None:
    columns = [f"c{i}" for i in range(100_000)]
    with pytest.raises(DataError) as caught:
        load(table(folder, ",".join(columns) + "\n" + ",".join("x" for _ in columns) + "\n", "a.csv"), "en", "de")
    assert "c0, c1" in str(caught.value)
    assert "and 99,988 more" in str(caught.value)


def test_registry(folder: Path) -> None:
    table(folder, "audio\ttext_de\na.wav\tHallo\n")
    assert corpora.load("folder", folder, "en", "de") == load(folder, "en", "de")
    with pytest.raises(RecipeError, match="Did you mean 'folder'"):
        corpora.load("foldr", folder, "en", "de")
    for name in corpora.CORPORA:
        assert callable(corpora.loader(name))


def test_data_does_not_import_torch() -> None:
    modules = "audio, checks, clip, manifest, splits"
    code = f"from sordino.data import {modules}; from sordino.data.corpora import folder; import sys; "
    run = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert run.returncode == 0
