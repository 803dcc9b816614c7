"""Records of other schemas in today's terms: renamed, dropped, new and nested settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.config import migrations, records
from sordino.config.migrations import Migration, migrated
from sordino.config.records import changed_settings, completed
from sordino.config.sections import stage_sections
from sordino.errors import ArtifactError
from sordino.pipeline import runner

FILE = Path("stage.json")


def section_of(record: dict[str, Any], stage: str = "rank") -> dict[str, Any]:
    section: dict[str, Any] = migrated(record, stage, FILE)["section"]
    return section


@pytest.fixture
def three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema 4: a setting renamed twice, one renamed in a nested section, and one dropped."""
    steps = (
        Migration(renamed={"rank": {"one": "two"}}),
        Migration(renamed={"rank": {"two": "three", "prompt.kind": "prompt.style"}}),
        Migration(dropped={"rank": {"gone": [1, 2], "filter.gone": None}}),
    )
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)


@pytest.mark.usefixtures("three_steps")
def test_renames_follow_each_other_from_the_record_s_schema_on() -> None:
    assert section_of({"section": {"one": 5, "prompt": {"kind": "base"}}}) == {"three": 5, "prompt": {"style": "base"}}
    assert section_of({"schema": 2, "section": {"two": 5}}) == {"three": 5}
    assert section_of({"schema": 3, "section": {"two": 5}}) == {"two": 5}  # another setting by then
    assert section_of({"section": {"one": 5}}, "qlora") == {"one": 5}
    assert section_of({"section": {"prompt": None}}) == {"prompt": None}
    assert migrated({"section": {}, "hash": "h"}, "rank", FILE) == {"section": {}, "hash": "h", "schema": 4}


@pytest.mark.usefixtures("three_steps")
def test_a_dropped_setting_is_forgotten_at_its_default_alone() -> None:
    assert section_of({"section": {"gone": [1, 2], "filter": {"gone": None}}}) == {"filter": {}}
    changed = section_of({"section": {"gone": [1], "filter": {"gone": 3}}})
    assert changed == {"gone": [1], "filter": {"gone": 3}}
    assert changed_settings("rank", changed, {}) == ["filter", "gone"]


def test_a_record_is_not_changed_by_reading_it() -> None:
    record = {"section": {"quantise": "none"}}
    assert section_of(record, "qlora") == {"quantize": "none"}
    assert record == {"section": {"quantise": "none"}}


def test_records_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    newer = {"schema": migrations.schema() + 1, "section": {}, "complete": True}
    (tmp_path / "stage.json").write_text(json.dumps(newer))
    with pytest.raises(ArtifactError, match=r"stage\.json was written by a newer sordino \(schema 3; this one knows 2"):
        records.read_stage(tmp_path)


def test_what_is_not_there_is_the_default() -> None:
    full = completed("pseudolabel", {"filter": {"min_chrf": 40.0}, "seed": 3})
    assert full["filter"]["cut"] is True
    assert full["filter"]["min_chrf"] == 40.0
    assert full["filter"]["min_comet"] is None
    assert (full["samples"], full["seed"], full["dtype"]) == (8, 3, "auto")
    assert full["prompt"]["style"] == "chat"
    assert completed("prepare", {"extra": {"path": "e"}})["extra"]["corpus"] == "folder"
    assert completed("prepare", {})["extra"] is None
    assert completed("evaluate", {})["metrics"] == ["bleu", "chrf", "chrf++"]  # as JSON has it


def test_a_stage_s_setting_goes_before_one_of_the_recipe_with_its_name() -> None:
    assert completed("qlora", {})["rank"] == 64  # not the section rank
    assert completed("qlora", {"rank": 8})["rank"] == 8


def test_differences_are_named() -> None:
    assert changed_settings("rank", {}, {"remove": 8, "layers": (), "prompt": {"system": "auto"}}) == []
    assert changed_settings("rank", {"remove": 8}, {"remove": 7, "clips": 3, "seed": 1}) == ["clips", "remove", "seed"]
    assert changed_settings("rank", {"memory_mb": 5}, {}, ["memory_mb"]) == []
    assert changed_settings("rank", {"prompt": {"style": "base"}}, {}) == ["prompt"]


def test_what_only_a_stage_knows_has_no_default() -> None:
    assert changed_settings("distil", {"heal": "each"}, {"heal": "each", "remove": None}) == []
    assert changed_settings("distil", {"heal": "each"}, {"heal": "each", "remove": 2}) == ["remove"]
    assert changed_settings("translate", {}, {"device": "cpu"}) == ["device"]
    assert changed_settings(None, {"remove": 8}, {}) == ["remove"]


def test_records_of_other_work_share_the_recipe_s_settings() -> None:
    """A translated talk records its options, the languages and the prompt."""
    assert changed_settings("talks", {"pause": 0.5}, {}) == ["pause"]
    assert changed_settings("talks", {"prompt": {"style": "chat"}}, {"prompt": {"style": "chat", "example": []}}) == []


def test_every_stage_has_a_section_in_the_order_of_the_pipeline() -> None:
    """Known without importing a stage."""
    assert tuple(stage_sections()) == runner.STAGES


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ([], "must hold a JSON object, and holds a list"),
        (None, "must hold a JSON object, and holds null"),
        ({"section": None}, "'section' cannot be None"),
        ({"section": "x" * 10**6}, "'section' cannot be 'xxx"),
        ({"parents": {}}, "'parents' cannot be {}"),
        ({"parents": [5]}, "a parent must hold a JSON object, and holds a number"),
        ({"parents": [{"path": "x"}]}, "a parent lacks 'hash'"),
        ({"hash": 5}, "'hash' cannot be 5"),
        ({"schema": "two"}, "'schema' cannot be 'two'"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, change: Any, problem: str) -> None:
    good = {"section": {}, "parents": [], "outputs": {}, "hash": "x", "seconds": 1.5, "complete": True}
    file = tmp_path / "stage.json"
    file.write_text(json.dumps(good))
    assert records.read_stage(tmp_path) is not None
    file.write_text(json.dumps(good | change if isinstance(change, dict) else change))
    with pytest.raises(ArtifactError) as caught:
        records.read_stage(tmp_path)
    assert str(file) in caught.value.problem
    assert problem in caught.value.problem
    assert len(str(caught.value)) < 600
