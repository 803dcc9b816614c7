"""A run scored with everything switched on: COMET, cleaning, paired tests, talks; and what its page says of them."""

from __future__ import annotations

import json

import pytest

from sordino.cli import main
from sordino.metrics import comet_check
from tests.metrics import tiny_comet
from tests.stages.runs import recipe_file, write_corpus

UNUSED = ("rank", "prune", "pseudolabel", "distil", "qlora", "merge", "trim", "export")


@pytest.fixture(scope="module")
def finished(pico_dir, tmp_path_factory):
    """(recipe file, run directory, COMET directory) of a run of base and teacher."""
    root = tmp_path_factory.mktemp("evaluated")
    tiny_comet.build(root / "comet")
    changes = dict.fromkeys(UNUSED) | {
        "evaluate": {"bootstrap": 50, "clean": True, "metrics": ["chrf", "bleu", f"comet:{root / 'comet'}"]}
    }
    file = recipe_file(root, pico_dir("qwen2_audio"), write_corpus(root / "corpus"), changes)
    assert main(["run", str(file)]) == 0
    return file, root / "runs" / "run", root / "comet"


def test_scores_hold_it_all(finished):
    _, run, comet = finished
    scores = json.loads((run / "85-scores" / "scores.json").read_text(encoding="utf-8"))
    key = f"comet:{comet}"
    assert scores["groups"] == {"clips": {"test-8": 2, "test-9": 2}, "skipped": None}
    base, teacher = scores["systems"]["base"], scores["systems"]["teacher"]
    tests = base["significance"]
    assert tests["against"] == "teacher" and set(tests) == {"against", "chrf", "bleu"}
    assert 0 < tests["chrf"]["bootstrap_p"] <= 1 and 0 < tests["chrf"]["randomisation_p"] <= 1
    assert "significance" not in teacher
    for entry in (base, teacher):
        segments = entry["scores"][key]["segments"]
        assert entry["groups"][key]["test-9"] == pytest.approx(sum(segments[2:]) / 2)
        assert set(entry["groups"]["chrf"]) == {"test-8", "test-9"}
        assert set(entry["cleaned"]["scores"]) == {"chrf", "bleu", key}
        assert set(entry["cleaned"]["counts"]) == {"preamble", "newline", "quotes"}
        assert {"untranslated", "language"} <= set(entry["health"]["counts"])


def test_the_page_shows_it(finished):
    page = (finished[1] / "90-report" / "report.html").read_text(encoding="utf-8")
    for text in ("Paired tests against the teacher", "Scores by talk", "Scores of cleaned outputs", ">COMET comet<"):
        assert text in page


def test_the_check_takes_a_finished_run(finished, monkeypatch, capsys):
    file, run, comet = finished
    stored = json.loads((run / "85-scores" / "scores.json").read_text(encoding="utf-8"))["systems"]
    asked = []

    def original(python, files, columns, half):
        asked.append((str(python), len(columns["src"]), all(columns["src"])))
        return stored[("base", "teacher")[len(asked) - 1]]["scores"][f"comet:{comet}"]["segments"]

    monkeypatch.setattr(comet_check, "install", lambda directory: directory)
    monkeypatch.setattr(comet_check, "_original", original)
    assert main(["evaluate", str(file), "--comet-check"]) == 0
    assert capsys.readouterr().out.count("agrees with the original") == 2
    assert asked == [(str(run / "cache" / "comet-original"), 4, True)] * 2


def test_comet_without_transcripts_is_refused(pico_dir, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    table = corpus / "texts.tsv"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    rows = [row[:3] + row[4:] for row in rows]  # without text_en
    table.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    changes = dict.fromkeys((*UNUSED, "finetune")) | {"evaluate": {"metrics": ["chrf", "comet"]}}
    file = recipe_file(tmp_path, pico_dir("qwen2_audio"), corpus, changes)
    assert main(["run", str(file)]) == 2
    assert "comet needs source texts, and 4 of 4 test clips have none" in capsys.readouterr().err
