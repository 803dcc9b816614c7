"""Model cards: the Hub's own library reads them, and what they say is what the run recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from sordino.config import recipe as recipes
from sordino.config import records
from sordino.measure.audit import audit
from sordino.pipeline import lineage
from sordino.pipeline.lineage import Data, Lineage
from sordino.publishing import card, evaluation, facts, licences, techniques
from sordino.publishing.facts import HERE, Statement
from sordino.publishing.hub import described
from tests.publishing.stand_in import Hub
from tests.stages.runs import Made, answer, contents, refusal, run

ROOT = Path(__file__).parents[2]
Capsys = pytest.CaptureFixture[str]


def test_every_export_has_a_card_without_scores(made: Made, export: Path) -> None:
    for form in ("bf16", "nf4", "w4a16"):
        loaded = ModelCard.load(export.parent / form / "README.md")
        assert loaded.data.language == ["en", "de"]
        assert loaded.data.pipeline_tag == "audio-text-to-text"
        assert loaded.data.library_name == "transformers"
        assert loaded.data.eval_results is None
        assert f"# run-{form}\n" in loaded.text
        assert f"Stored as {form}." in loaded.text
        assert "it was written with the model, before it was scored" in loaded.text
    assert "nf4/README.md" in records.fingerprints(export.parent)


def test_the_whole_card(made: Made, export: Path, tmp_path: Path, capsys: Capsys) -> None:
    before = contents(made.finished)
    result = answer(
        capsys, "card", export, "--license", "cc-by-4.0", "--data-license", "CC0", "--base-model", "me/base"
    )
    assert contents(made.finished) == before
    assert result["scored"] is True
    loaded = ModelCard(result["card"])
    data, text = loaded.data, loaded.text
    assert (data.license, data.base_model, data.base_model_relation) == ("cc-by-4.0", "me/base", "quantized")
    assert {"sordino", "layer-pruning", "knowledge-distillation", "qlora", "bitsandbytes", "4-bit"} <= {*data.tags}
    assert data.metrics == ["bleu", "chrf"]
    scores = json.loads((made.finished / "85-scores" / "scores.json").read_text())["systems"]["nf4"]["scores"]
    assert len(data.eval_results) == 3
    for row, score in zip(data.eval_results, scores.values(), strict=True):
        assert row.metric_value == round(score["value"], 4)
        assert row.metric_args["signature"] == score["signature"]
        assert row.metric_args["interval_95"] == [round(bound, 4) for bound in score["interval"]]
        assert (row.task_type, row.dataset_split, row.dataset_type) == ("translation", "test", "corpus")
        assert f"`{score['signature']}`" in text
    size = audit(export)
    assert f"| parameters of the network | {size.parameters:,} |" in text
    assert f"| bytes of weights | {size.weights_bytes:,} |" in text
    removed = json.loads((made.finished / "40-pruned" / "stage.json").read_text())["removed"]
    assert f"Layer pruning: 2 layers removed ({', '.join(removed)})" in text
    assert re.search(r"Vocabulary trimmed from \d+ to \d+ rows\.", text)
    assert "training data: CC0" in text
    assert re.search(r"^\| teacher \| 6 \|", text, re.MULTILINE)
    assert re.search(r"^\| \*\*this model\*\* \| 4 \|", text, re.MULTILINE)
    assert str(made.root) not in result["card"]


def test_the_hubs_rules_on_its_front_matter(made: Made, export: Path, hub: Hub) -> None:
    """`validate` asks the Hub: here the stand-in, which has its rules of the keys that are used."""
    for model in (export, made.finished / "60-student"):
        ModelCard(card.render(described(model, Statement()))).validate()
    with pytest.raises(ValueError, match="base_model"):
        ModelCard(card.render(described(export, Statement(base_model="a/b/c")))).validate()
    assert hub.count("validate-yaml") == 3


def test_the_command_writes_a_file_but_not_into_the_model(
    made: Made, export: Path, tmp_path: Path, capsys: Capsys
) -> None:
    run("card", export, "--out", tmp_path / "card.md")
    assert ModelCard.load(tmp_path / "card.md").data.eval_results
    capsys.readouterr()
    run("card", export)
    assert capsys.readouterr().out == (tmp_path / "card.md").read_text()
    assert "lies in the model's directory" in refusal(capsys, "card", export, "--out", export / "README.md")
    assert "is of no run" in (text := facts_of_no_run(made))
    assert "Not recorded." in text
    assert "no finished stage of a run" in refusal(capsys, "card", made.model)


def facts_of_no_run(made: Made) -> str:
    return card.render(facts.read(made.model, "base", HERE, None, "it was not scored."))


def test_the_recipe_in_it_is_the_one_that_ran(made: Made, export: Path) -> None:
    text = techniques.recipe(lineage.read(export))
    ran, told = recipes.load(made.recipe(made.root)), recipes.parse(yaml.safe_load(text), [], "card")
    for name in (
        "finetune",
        "rank",
        "prune",
        "pseudolabel",
        "distil",
        "qlora",
        "merge",
        "trim",
        "export",
        "prompt",
        "seed",
    ):
        assert getattr(told, name) == getattr(ran, name), name
    assert told.data is not None
    assert told.data.path == "corpus"
    assert told.model == "model"


def test_paths_of_the_machine_are_no_part_of_the_recipe() -> None:
    prepared = {
        "stage": "prepare",
        "section": {
            "corpus": "folder",
            "path": "/home/me/talks",
            "extra": {"corpus": "covost2", "path": "~/cv", "rows": 5},
        },
    }
    labels = {
        "stage": "pseudolabel",
        "section": {"filter": {"min_comet": 0.5, "comet": "comet:/models/xcomet"}, "batch_size": 8, "target": "de"},
    }
    history = Lineage((prepared, labels), (("/models/qwen", "0" * 64),), ())
    told = yaml.safe_load(techniques.recipe(history))
    assert told["model"] == "qwen"
    assert told["data"]["path"] == "talks"
    assert told["data"]["extra"] == {"corpus": "covost2", "path": "cv", "rows": 5}
    assert told["pseudolabel"] == {"filter": {"min_comet": 0.5, "comet": "comet:xcomet"}, "batch_size": 8}


def test_a_base_model_on_the_hub_is_linked_and_a_directory_is_not(made: Made) -> None:
    def front(*base: str, **stated: str) -> dict[str, object]:
        history = Lineage(({"stage": "prune", "section": {}},), (base,), ())  # type: ignore[arg-type]
        text = card.render(facts.read(made.model, "x", HERE, history, "", Statement(**stated)))
        loaded: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
        return loaded

    linked = front("Qwen/Qwen2-Audio-7B-Instruct", "hub:main")
    assert (linked["base_model"], linked["base_model_relation"]) == ("Qwen/Qwen2-Audio-7B-Instruct", "finetune")
    assert "base_model" not in front("demo/base", "0" * 64), "two parts, and still a directory"
    assert front("demo/base", "0" * 64, base_model="me/pico")["base_model"] == "me/pico"


def test_licences_are_read_or_stated_and_never_guessed(tmp_path: Path, made: Made) -> None:
    assert licences.of_card("---\nlicense: mit\n---\n# A") == "mit"
    assert licences.of_card("---\nlicense: other\nlicense_name: mine\n---\n") is None
    for odd in ("# No front matter", "---\nlicense: [mit, x]\n---\n", "---\n- a list\n---\n", "---\na: b: c\n---\n"):
        assert licences.of_card(odd) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert licences.of_base(str(tmp_path), "0" * 64) == "mit"
    assert licences.of_base("no/such-model", "hub:main") is None
    corpus = (Data("acl6060", "data/acl6060", (), {"train": 1.0}), Data("folder", "data/mine", (), {}))
    history = Lineage(({"stage": "prune", "section": {}},), ((str(tmp_path), "0" * 64),), corpus)
    text = card.render(facts.read(made.model, "x", HERE, history, ""))
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["datasets"]) == ("mit", ["ymoslem/acl-6060"])
    assert "acl6060 (acl6060); prepared in all: train 1 h. Licence: CC BY 4.0." in text
    assert "folder (mine); prepared in all: not recorded. Licence: not stated." in text


def test_the_corpora_have_the_licences_of_the_docs() -> None:
    rows = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8").split("\n")
    for name, licence in licences.CORPORA.items():
        (row,) = (line for line in rows if line.startswith(f"| `{name}`"))
        assert licence in row.split("|")[-2]


def test_why_there_are_no_scores(made: Made, tmp_path: Path) -> None:
    made.copied(tmp_path, stages=["20-teacher", "62-merged", "70-export", "80-outputs", "85-scores"])
    place = tmp_path / "runs" / "run"
    assert not isinstance(evaluation.read(place / "70-export" / "nf4"), str)
    assert evaluation.read(made.model) == "it is no model of a finished stage."
    scores = place / "85-scores" / "scores.json"
    record = json.loads(scores.read_text())
    scores.write_text(json.dumps(record | {"clips": 1}))
    assert "not as they were written" in str(evaluation.read(place / "70-export" / "nf4"))
    stage = scores.with_name("stage.json")
    changed = json.loads(stage.read_text())
    del record["systems"]["nf4"]
    scores.write_text(json.dumps(record))
    changed["outputs"] = records.fingerprints(scores.parent)
    stage.write_text(json.dumps(changed))
    assert "the run did not score this model" in str(evaluation.read(place / "70-export" / "nf4"))
    teacher = evaluation.read(place / "20-teacher")
    assert not isinstance(teacher, str)
    assert [system.name for system in teacher.systems] == ["base", "teacher"]
    stage.unlink()
    assert "the run has no scores" in str(evaluation.read(place / "20-teacher"))


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (
            {
                "stage": "rank",
                "section": {"method": "iterative", "criterion": "auto", "search": "racing", "target": "zh"},
            },
            "Layers ranked by iterative removal, criterion chrf, racing search.",
        ),
        ({"stage": "rank", "section": {"method": "explicit"}}, "Layers to remove: chosen by hand."),
        ({"stage": "rank", "section": {"method": "middle"}}, "Layers to remove: those in the middle."),
        (
            {"stage": "pseudolabel", "clips": 7, "section": {"method": "mbr", "samples": 8}},
            "Sequence-level knowledge distillation: the teacher translates 7 training clips, each the one of 8 samples "
            "that the others agree with (MBR).",
        ),
        ({"stage": "of a plug-in", "section": {"strength": 3, "parts": []}}, "of a plug-in (strength 3)."),
    ],
)
def test_sentences(stage: dict[str, object], sentence: str) -> None:
    assert techniques.sentences(Lineage((stage,), (), ()), "nf4") == [sentence]
