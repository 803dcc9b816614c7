"""First recipes: each of them is read, planned and deals its clips as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.config import recipe as recipes
from sordino.config.schema import Recipe
from sordino.data.survey import survey
from sordino.errors import DataError
from sordino.models import registry
from sordino.pipeline import runner, starter
from tests.data import sounds
from tests.stages.runs import Made, answer, stage_json

Capsys = pytest.CaptureFixture[str]


def corpus(root: Path, count: int, columns: str = "", cell: Callable[[int], str] = lambda i: "", long: int = 0) -> Path:
    """So many clips of 0.2 s, the first `long` of them of 5 s, with further columns."""
    root.mkdir(parents=True)
    rows = ["\t".join(filter(None, ("audio", "text_en", "text_de", columns)))]
    sounds.save(root / "long.wav", sounds.tone(5.0))
    for i in range(count):
        sounds.save(root / f"{i:03}.wav", sounds.tone(0.2))
        name = "long.wav" if i < long else f"{i:03}.wav"
        rows.append("\t".join(filter(None, (name, f"Number {i}.", f"Nummer {i}.", cell(i)))))
    (root / "texts.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def begun(root: Path, model: str) -> tuple[starter.Start, Recipe, str]:
    """A start, its recipe as it is read, and its text."""
    start = starter.start(survey(root), model)
    file = root.parent / "first.yaml"
    text = starter.recipe(start)
    file.write_text(text, encoding="utf-8")
    return start, recipes.load(file), text


def test_it_is_planned_and_prepare_deals_what_it_says(made: Made, tmp_path: Path, capsys: Capsys) -> None:
    start, recipe, text = begun(corpus(tmp_path / "my talks (2)", 60), str(made.model))
    assert dict(start.dealt) == {"train": 42, "select": 6, "dev": 6, "test": 6}
    assert "splits: {select: 6, dev: 6, test: 6}" in text
    assert (recipe.name, recipe.source, recipe.target, recipe.model) == (
        "my-talks-2-en-de",
        "en",
        "de",
        str(made.model),
    )
    assert recipe.rank is not None
    assert recipe.rank.remove == 1, "a quarter of six layers"
    file = tmp_path / "first.yaml"
    stages = [line["stage"] for line in answer(capsys, "plan", file)["plan"]]
    assert stages == [
        "prepare", "finetune", "rank", "prune", "pseudolabel", "distil", "export", "translate", "evaluate", "report",
    ]  # fmt: skip
    assert answer(capsys, "prepare", file, f"out={tmp_path / 'runs'}")["ran"] is True
    assert stage_json(tmp_path / "runs" / "my-talks-2-en-de" / "10-data")["clips"] == start.dealt


def test_a_model_that_is_not_here_yet_is_taken_for_a_large_one(tmp_path: Path) -> None:
    _, recipe, text = begun(corpus(tmp_path / "mine", 60), registry.USUAL)
    assert recipe.rank is not None and recipe.finetune is not None
    assert recipe.rank.remove == 8
    assert (recipe.finetune.lr, recipe.finetune.precision) == (1e-5, "bfloat16")
    assert "# of its 32 decoder layers" in text
    assert {line.why for line in runner.plan(recipe)} >= {"not run yet"}


def test_large_corpora_hold_out_a_hundred(tmp_path: Path, made: Made) -> None:
    start, _, _ = begun(corpus(tmp_path / "mine", 1100), str(made.model))
    assert dict(start.dealt) == {"train": 800, "select": 100, "dev": 100, "test": 100}


def test_clips_beyond_the_window_are_left_out(tmp_path: Path, made: Made) -> None:
    """The pico model hears 4 s."""
    start, recipe, text = begun(corpus(tmp_path / "other", 40, long=1), str(made.model))
    assert recipe.data is not None
    assert recipe.data.max_seconds == start.window == 4
    assert "max_seconds: 4  # longer: 1" in text
    assert sum(start.dealt.values()) == 39
    assert any(
        "clips longer than the 4 s that the model hears at once: 1" in sentence for sentence in starter.missing(start)
    )


def test_the_tables_own_splits_are_kept(tmp_path: Path, made: Made) -> None:
    names = ("train",) * 7 + ("select", "dev", "test")
    start, recipe, text = begun(corpus(tmp_path / "mine", 40, "split", lambda i: names[i % 10]), str(made.model))
    assert dict(start.dealt) == {"train": 28, "select": 4, "dev": 4, "test": 4}
    assert recipe.data is not None
    assert "  splits:" not in text
    assert "# 28 train, 4 select, 4 dev, 4 test" in text


def test_a_split_that_the_table_lacks(tmp_path: Path, made: Made) -> None:
    """With no clip left to draw from, layers in the middle go, and dev is scored."""
    start, recipe, _ = begun(
        corpus(tmp_path / "mine", 40, "split", lambda i: "dev" if i % 10 == 0 else "train"), str(made.model)
    )
    assert recipe.rank is not None and recipe.translate is not None
    assert (recipe.rank.method, recipe.translate.split) == ("middle", "dev")
    sentences = starter.missing(start)
    assert any("clips of the split select" in sentence for sentence in sentences)
    assert any("dev will be scored" in sentence for sentence in sentences)
    assert {line.why for line in runner.plan(recipe)} >= {"not run yet"}
    with pytest.raises(DataError, match="puts every clip into train"):
        starter.start(survey(corpus(tmp_path / "other", 40, "split", lambda i: "train")), str(made.model))


def test_empty_cells_are_dealt(tmp_path: Path, made: Made) -> None:
    start, _, text = begun(
        corpus(tmp_path / "mine", 40, "split\tnote", lambda i: f"{'test' if i % 10 == 0 else ' '}\tx"), str(made.model)
    )
    assert start.dealt["test"] == 4
    assert "splits: {select: 3, dev: 3}" in text


@pytest.mark.parametrize(("talks", "by"), [(12, "group"), (2, "segment")])
def test_talks_are_held_out_whole_where_there_are_enough(tmp_path: Path, made: Made, talks: int, by: str) -> None:
    start, recipe, text = begun(corpus(tmp_path / "mine", 48, "talk_id", lambda i: f"t{i % talks}"), str(made.model))
    assert start.by == by
    assert recipe.data is not None
    assert recipe.data.splits.by == by
    leaks = any("which leaks" in sentence for sentence in starter.missing(start))
    assert leaks == (by == "segment")
    assert ("this leaks" in text) == (by == "segment")


def test_what_is_missing_is_said(tmp_path: Path, made: Made) -> None:
    root = corpus(tmp_path / "mine", 40)
    table = (root / "texts.tsv").read_text().replace("text_en", "notes")
    (root / "texts.tsv").write_text(table + "gone.wav\tx\ty\n")
    said = " ".join(starter.missing(starter.start(survey(root), str(made.model))))
    for words in (
        "rows that cannot be used: 1",
        "audio files in no row: 1, long.wav among them",
        "transcripts (text_en)",
        "a column that says who speaks",
        "training clips: 28 are few",
        "English is assumed",
    ):
        assert words in said


def test_too_few_clips(tmp_path: Path, made: Made) -> None:
    with pytest.raises(DataError, match="2 usable clips, too few"):
        starter.start(survey(corpus(tmp_path / "mine", 2)), str(made.model))
    with pytest.raises(DataError, match=r"holds no clip of 0\.1 to 4 s"):
        starter.start(survey(corpus(tmp_path / "long", 3, long=3, columns="id", cell=str)), str(made.model))


def test_a_folder_with_several_tables_names_the_one(tmp_path: Path, made: Made) -> None:
    root = corpus(tmp_path / "mine", 40)
    (root / "other.csv").write_text("audio,text_de\n")
    start = starter.start(survey(root, texts="texts.tsv"), str(made.model))
    assert "  texts: texts.tsv\n" in starter.recipe(start)
