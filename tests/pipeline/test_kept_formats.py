"""Exports stay when others are asked for, as long as they are of the same model, prompt and languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sordino.config.recipe import parse
from sordino.config.schema import Recipe
from sordino.pipeline import artifact, kept_formats
from sordino.pipeline.artifact import Parent
from sordino.stages.export import STAGE

MERGED, DATA, RANKING, PSEUDO = (Parent(name, name[:2]) for name in ("62-merged", "10-data", "30-ranking", "50-pseudo"))
RECIPE: dict[str, Any] = {
    **{"model": "m", "device": "cpu", "data": {"path": "d"}, "finetune": {}, "rank": {}, "prune": {}},
    **{"pseudolabel": {}, "distil": {}, "qlora": {}, "merge": {}},
}


def recipe(run: Path, export: dict[str, Any], **more: Any) -> Recipe:
    return parse(RECIPE | {"out": str(run), "name": "r", "export": export} | more, [], "r")


def parents(asked: Recipe) -> list[Parent]:
    named = {parent.path: parent for parent in (MERGED, DATA, RANKING, PSEUDO)}
    return [named[path] for path in STAGE.parents(asked)]


def export(run: Path, section: dict[str, Any], **more: Any) -> None:
    """A finished export, as far as the contract goes: with what is there already."""
    asked = recipe(run, section, **more)
    settings = STAGE.settings(asked)
    assert settings
    there = kept_formats.beside(asked, settings, parents(asked))
    with artifact.building(run / "r" / "70-export", there.settings, there.parents, {"stage": "export"}) as (out, _):
        for name in there.kept:
            kept_formats.take_over(run / "r" / "70-export", name, out)
        for name in there.settings["formats"]:
            if name not in there.kept:
                (out / name).mkdir()
                (out / name / "model.safetensors").write_text(f"{name} of {section}")
                (out / name / "audit.json").write_text("{}")


def state(
    run: Path, section: dict[str, Any], above: list[Parent] | None = None, **more: Any
) -> tuple[str | None, bool]:
    """Why an export would run, and whether every format that is there would stay."""
    asked = recipe(run, section, **more)
    settings = STAGE.settings(asked)
    assert settings
    there = kept_formats.beside(asked, settings, above or parents(asked))
    return artifact.why_stale(run / "r" / "70-export", there.settings, there.parents), there.all_stay


def contents(run: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in (run / "r" / "70-export").glob("*/model.safetensors")}


def test_formats_are_added_beside_the_others(tmp_path: Path) -> None:
    export(tmp_path, {"formats": ["nf4", "w4a16"]})
    before = contents(tmp_path)
    assert state(tmp_path, {"formats": ["bf16"]}) == ("settings changed: formats", True)
    export(tmp_path, {"formats": ["bf16"]})
    assert contents(tmp_path) == before | {"bf16": contents(tmp_path)["bf16"]}
    for formats in (["nf4", "w4a16"], ["w4a16", "nf4"], ["bf16"], ["bf16", "w4a16", "nf4"]):
        assert state(tmp_path, {"formats": formats}) == (None, True)
    record = json.loads((tmp_path / "r/70-export/stage.json").read_text())
    assert record["section"]["formats"] == ["nf4", "w4a16", "bf16"]
    assert record["parents"] == [MERGED.to_json()]


def test_a_format_with_settings_of_its_own_stays_as_it_was_asked_for(tmp_path: Path) -> None:
    mixed = {"formats": ["nf4", "mixed"], "budget_ratio": 0.25}
    export(tmp_path, mixed)
    before = contents(tmp_path)
    export(tmp_path, {"formats": ["bf16"]})  # without its budget, clips and ranking
    assert {name: contents(tmp_path)[name] for name in before} == before
    assert state(tmp_path, mixed) == (None, True)
    assert state(tmp_path, {"formats": ["mixed"], "budget_ratio": 0.25}) == (None, True)
    record = json.loads((tmp_path / "r/70-export/stage.json").read_text())
    assert [parent["path"] for parent in record["parents"]] == ["62-merged", "10-data", "30-ranking"]
    # another budget makes it anew, and nothing else
    other = {"formats": ["mixed"], "budget_ratio": 0.2}
    assert state(tmp_path, other) == ("settings changed: budget_ratio, formats", False)
    export(tmp_path, other)
    after = contents(tmp_path)
    assert after["mixed"] != before["mixed"]
    assert after["nf4"] == before["nf4"] and "bf16" in after


@pytest.mark.parametrize(
    ("section", "above", "stays"),
    [
        ({"formats": ["mixed"], "budget_ratio": 0.25}, [MERGED, Parent("10-data", "other"), RANKING], False),
        ({"formats": ["mixed"], "budget_ratio": 0.25}, [MERGED, DATA], False),  # layers may no longer be dropped
        ({"formats": ["mixed"], "budget_ratio": 0.25, "sensitivity": {"clips": 8}}, None, False),
        ({"formats": ["bf16"]}, None, True),
        ({"formats": ["bf16"]}, [Parent("62-merged", "other")], False),
        ({"formats": ["w4a16-gptq"]}, [MERGED, PSEUDO], True),
        ({"formats": ["w4a16-gptq"]}, [MERGED, Parent("10-data", "other")], False),  # not both of one record
    ],
)
def test_what_format_mixed_was_made_from(
    tmp_path: Path, section: dict[str, Any], above: list[Parent] | None, stays: bool
) -> None:
    export(tmp_path, {"formats": ["mixed"], "budget_ratio": 0.25})
    why, all_stay = state(tmp_path, section, above)
    assert why is not None
    assert all_stay is stays


@pytest.mark.parametrize("more", [{"target": "zh"}, {"prompt": {"instruction": "Say it in {target}:"}}, {"seed": 1}])
def test_another_prompt_or_language_is_another_model(tmp_path: Path, more: dict[str, Any]) -> None:
    export(tmp_path, {"formats": ["nf4"]})
    assert state(tmp_path, {"formats": ["nf4"]}, **more)[1] is False
    export(tmp_path, {"formats": ["bf16"]}, **more)
    assert set(contents(tmp_path)) == {"bf16"}


def test_the_same_model_by_its_name_is_the_same_model(tmp_path: Path) -> None:
    export(tmp_path, {"formats": ["nf4"]})
    assert state(tmp_path, {"formats": ["nf4"], "of": "merged"}) == ("settings changed: of", True)


def test_a_format_that_is_not_whole_does_not_stay(tmp_path: Path) -> None:
    export(tmp_path, {"formats": ["nf4", "w4a16"]})
    (tmp_path / "r/70-export/nf4/model.safetensors").unlink()
    why, all_stay = state(tmp_path, {"formats": ["w4a16"]})
    assert (why, all_stay) == ("settings changed: formats", False)
    assert state(tmp_path, {"formats": ["nf4", "w4a16"]})[0] == "settings changed: formats"
