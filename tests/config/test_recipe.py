"""Recipes: every mistake at once, overrides, contradictions, and the recipes that are shipped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import sordino
from sordino.config import recipe
from sordino.config.recipe import load
from sordino.config.schema import Recipe
from sordino.errors import RecipeError

SHIPPED = sorted(recipe.SHIPPED.glob("*.yaml"))
SMALL: dict[str, Any] = {"model": "m", "data": {"path": "d"}}


def write(directory: Path, raw: Any) -> Path:
    file = directory / "r.yaml"
    file.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw), encoding="utf-8")
    return file


def refused(directory: Path, changes: Any, *overrides: str) -> str:
    """The message for SMALL with changes."""
    with pytest.raises(RecipeError) as caught:
        load(write(directory, SMALL | changes), overrides)
    return str(caught.value)


def accepted(directory: Path, changes: Any = None, *overrides: str) -> Recipe:
    return load(write(directory, SMALL | (changes or {})), overrides)


def test_every_unknown_key_is_reported_at_once_with_the_near_match(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        {"modle": "x", "finetune": {"epoch": 3, "lr": "fast"}, "rank": {"zzz": 1}, "seed": "one"},
        "data.splits.tset=5",
    )
    assert "unknown key 'modle' (did you mean 'model'?)" in message
    assert "unknown key 'finetune.epoch' (did you mean 'epochs'?)" in message
    assert "unknown key 'data.splits.tset' (did you mean 'test'?)" in message
    assert "unknown key 'rank.zzz' (known: method, scope" in message
    assert "finetune.lr: expected float, found 'fast'" in message
    assert "seed: expected int, found 'one'" in message
    assert "unknown key 'qlora.quantise' (did you mean 'quantize'?)" in refused(
        tmp_path, {"qlora": {"quantise": "nf4"}}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": True}, "seed: expected int, found True"),
        ({"seed": 1.5}, "seed: expected int, found 1.5"),
        ({"model": None}, "model: expected str, found None"),
        ({"model": ["a"]}, "model: expected str, found ['a']"),
        ({"prompt": "hello"}, "prompt: expected settings, found 'hello'"),
        ({"finetune": 3}, "finetune: expected settings, found 3"),
        ({"finetune": {"freeze": ["encodr"]}}, "finetune.freeze: 'encodr' is not one of encoder, projector"),
        ({"finetune": {"lr": True}}, "finetune.lr: expected float, found True"),
        ({"finetune": {"gradient_checkpointing": 1}}, "finetune.gradient_checkpointing: expected bool, found 1"),
        ({"finetune": {"scheduler": ["cosine"]}}, "finetune.scheduler: ['cosine'] is not one of"),
        ({"rank": {"layers": [1.5], "method": "explicit"}}, "rank.layers: expected str, found 1.5"),
        ({"attention": "flash"}, "attention: expected"),
    ],
)
def test_wrong_types(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    if "attention" in changes:
        said = "attention: 'flash' is not one of sdpa, eager, flash_attention_2"
    assert said in refused(tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ""}, "model: missing"),
        ({"data": False}, "data.path: missing"),
        ({"prompt": {"example": ["one"]}}, "prompt.example"),
        ({"rank": {"method": "explicit"}}, "rank.layers: method 'explicit' needs the layers"),
        ({"rank": {"layers": [1]}}, "rank.layers: not used by method 'iterative'"),
        ({"rank": {"remove": 0}}, "rank.remove: must be at least 1, found 0"),
        ({"rank": {"protect_first": -1}}, "rank.protect_first: must be at least 0"),
        ({"prune": None}, "prune: needs the rank section"),
        ({"rank": None, "prune": {"of": "teacher"}}, "prune.of: this recipe makes no 'teacher' model"),
        ({"distil": {"mix": {"pseudo": False}}}, "distil: needs the prune section"),
        ({"pseudolabel": None}, "pseudolabel: needs the finetune section"),
        ({"merge": None}, "merge: needs the qlora section"),
        ({"qlora": None}, "qlora.mix.pseudo: needs the pseudolabel section"),
        ({"qlora": {"mix": {"pseudo": False, "authentic": False}}}, "qlora.mix: nothing is left"),
        ({"qlora": {"mix": {"pseudo": False, "extra": 5}}}, "qlora.mix.extra: needs data.extra"),
        ({"qlora": {"mix": {"pseudo": False}, "start": "student"}}, "qlora.start: this recipe makes no 'student'"),
        ({"qlora": {"mix": {"pseudo": False}, "freeze": ["encoder"]}}, "qlora.freeze"),
        ({"export": {"of": "merged"}}, "export.of: this recipe makes no 'merged'"),
        ({"translate": {"systems": ["base", "student"]}}, "translate.systems: this recipe makes no 'student'"),
        ({"finetune": {"batch_size": 4, "accumulate": 3}}, "finetune.accumulate: must divide"),
        ({"finetune": {"accumulate": 0}}, "finetune.accumulate: must be at least 1"),
        ({"finetune": {"epochs": 0}}, "finetune.epochs: must be above 0"),
        ({"finetune": {"epochs": ".nan"}}, "finetune.epochs"),
        ({"finetune": {"lr": float("nan")}}, "finetune.lr: nan is not a number"),
        ({"finetune": {"max_steps": 0}}, "finetune.max_steps: must be at least 1"),
        ({"finetune": {"warmup_ratio": 1.0}}, "finetune.warmup_ratio: must be below 1"),
        ({"data": {"path": "d", "rows": -2}}, "data.rows: must be at least 1"),
        ({"data": {"path": "d", "splits": {"select": -5}}}, "data.splits.select: must be at least 0"),
        ({"translate": {"batch_size": 0}}, "translate.batch_size: must be at least 1"),
        ({"pseudolabel": {"samples": 4}}, "pseudolabel.samples: not used by method 'greedy'"),
        ({"pseudolabel": {"method": "mbr", "samples": 1}}, "pseudolabel.samples: must be at least 2, found 1"),
        ({"pseudolabel": {"method": "mbr", "epsilon": 1.0}}, "pseudolabel.epsilon: must be below 1"),
        ({"pseudolabel": {"method": "mbr", "temperature": 0}}, "pseudolabel.temperature: must be above 0"),
        ({"pseudolabel": {"filter": {"max_ratio": 0.5}}}, "pseudolabel.filter.max_ratio: must be at least 1"),
        ({"pseudolabel": {"filter": {"min_chrf": 101}}}, "pseudolabel.filter.min_chrf: must be at most 100, found 101"),
        ({"pseudolabel": {"filter": {"comet": "comet:d"}}}, "pseudolabel.filter.comet: not used without min_comet"),
        ({"name": "{speaker}"}, "name: '{speaker}' may use {source} and {target} only"),
        ({"name": "{source.x}"}, "name: '{source.x}' may use"),
        ({"name": "{"}, "name: '{' may use"),
        ({"name": "a/b"}, "name: 'a/b' must be a plain directory name"),
        ({"name": ".."}, "name: '..' must be a plain directory name"),
        ({"export": {"budget_gb": 1, "budget_ratio": 0.2}}, "export: give budget_gb or budget_ratio, not both"),
        ({"export": {"formats": ["mixed"]}}, "export.formats: 'mixed' needs export.budget_gb"),
        ({"export": {"budget_ratio": 1.5}}, "export.budget_ratio: must be below 1"),
        ({"export": {"budget_gb": 0, "formats": ["mixed"]}}, "export.budget_gb: must be above 0"),
        ({"sweep": {"budget_ratios": [0.2, 1.0]}}, "sweep.budget_ratios: each must be above 0 and below 1"),
        ({"sweep": {"of": ["student"]}}, "sweep.of: this recipe makes no 'student' model"),
        ({"sweep": {"remove": [3]}, "rank": {"remove": 2}}, "sweep.remove: each must be at least 1 and at most 2"),
        ({"sweep": {}, "translate": False}, "sweep: needs translate, and evaluate with chrf"),
    ],
)
def test_contradictions(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, changes)


def test_formats_follow_the_budget(tmp_path: Path) -> None:
    def formats(section: Any) -> tuple[str, ...]:
        found = accepted(tmp_path, {"export": section}).export
        assert found
        return found.formats

    assert formats(None) == ("nf4",)
    assert formats({"budget_gb": 4.0}) == formats({"budget_ratio": 0.2}) == ("mixed",)
    assert formats({"formats": ["bf16", "mixed"], "budget_gb": 4.0}) == ("bf16", "mixed")


def test_overrides_are_dotted_and_yaml_valued(tmp_path: Path) -> None:
    found = accepted(
        tmp_path,
        {"finetune": {"epochs": 3}},
        "finetune.lr=1e-5",
        "finetune.freeze=[encoder, projector]",
        "data.splits.by=segment",
        "prompt.system=",
        "rank.layers=[12, encoder.3]",
        "rank.method=explicit",
        "export.formats=bf16",
        "name=a=b",
    )
    assert found.finetune
    assert found.finetune.lr == 1e-5
    assert found.finetune.epochs == 3.0
    assert found.finetune.freeze == ("encoder", "projector")
    assert found.data
    assert found.data.splits.by == "segment"
    assert found.prompt.system is None
    assert found.rank
    assert found.rank.layers == ("12", "encoder.3")
    assert found.export
    assert found.export.formats == ("bf16",)
    assert found.name == "a=b"


def test_malformed_overrides_are_all_named(tmp_path: Path) -> None:
    message = refused(tmp_path, {}, "lr", "=5", "seed=[1", "model.x=1")
    for part in ("'lr' is not key=value", "'=5' is not key=value", "seed: '[1' is not a YAML value", "model.x"):
        assert part in message


def test_an_empty_value_leaves_a_section_out_and_an_empty_section_asks_for_it(tmp_path: Path) -> None:
    changes = {"rank": {"remove": 2}, "merge": None, "qlora": {"mix": {"pseudo": False}}, "export": None}
    changes["data"] = {"path": "d", "extra": {"path": "e"}}
    full = accepted(tmp_path, changes)
    assert full.merge is not None
    assert full.export is not None
    assert full.translate is not None
    assert full.data
    assert full.data.extra
    less = accepted(tmp_path, changes, "rank=", "merge=", "translate=", "export=", "data.extra=", "report=false")
    assert (less.rank, less.merge, less.translate, less.export, less.report) == (None,) * 5
    assert less.data
    assert less.data.extra is None
    assert less.qlora
    assert accepted(tmp_path, {}, "distil=").distil is None
    assert accepted(tmp_path, {"prompt": {"style": "base"}}, "prompt=").prompt.style == "chat"


@pytest.mark.parametrize(("written", "value"), [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3", 3.0), ("2E+1", 20.0)])
def test_numbers_that_yaml_reads_as_text(tmp_path: Path, written: str, value: float) -> None:
    found = load(write(tmp_path, f"model: m\ndata: {{path: d}}\nfinetune: {{lr: {written}}}\n"))
    assert found.finetune
    assert found.finetune.lr == value


def test_the_name_is_made_of_language_codes(tmp_path: Path) -> None:
    assert accepted(tmp_path, {"source": "English", "target": "german"}).name == "en-de"
    named = accepted(tmp_path, {"name": "x-{target}", "out": "o", "target": "zh", "rank": None})
    assert named.directory == Path("o/x-zh")
    assert named.criterion == "chrf"
    assert accepted(tmp_path, {"rank": None}).criterion == "chrf++"
    assert accepted(tmp_path, {"rank": {"criterion": "bleu"}, "target": "zh"}).criterion == "bleu"


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        accepted(tmp_path).seed = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no settings"), ("- a\n", "holds no settings"), ("a: [1\n", r"yaml:\d+: not YAML"), ("\x00", "NUL")],
)
def test_files_that_hold_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(write(tmp_path, text))


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"there is no recipe .*/absent\.yaml\. Shipped recipes, by name: best_demo, demo, .*paper_a"
    ):
        load(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match=r"there is no recipe demmo\. Did you mean 'demo'\? Shipped"):
        load("demmo")
    with pytest.raises(
        RecipeError, match=r"there is no recipe recipes/paper_b_en_d\.yaml\. Did you mean 'paper_b_en_de'"
    ):
        load("recipes/paper_b_en_d.yaml")


@pytest.mark.parametrize("name", ["paper_b_en_de", "paper_b_en_de.yaml", "recipes/paper_b_en_de.yaml"])
def test_a_shipped_recipe_has_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper_b_en_de").mkdir()  # a directory is no recipe
    assert load(name).name == "paper-b-en-de"
    assert load(name, ["target=zh"]).name == "paper-b-en-zh"


def test_a_file_goes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(SMALL | {"name": "mine"}))
    assert load("demo.yaml").name == "mine"
    assert load(tmp_path / "demo.yaml").name == "mine"
    with pytest.raises(RecipeError, match="elsewhere/demo"):  # a path is not looked up by its last part
        load("elsewhere/demo.yaml")


def test_the_demo_says_where_its_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"no demo/base and no demo/corpus here; .* in sordino's source checkout"):
        load("demo")
    with pytest.raises(RecipeError, match=r"there is no demo/base here"):
        load(SHIPPED[0], ["data.path=mine"])
    assert load("demo", ["model=m", "data.path=mine"]).model == "m"


def test_recipes_are_part_of_the_package() -> None:
    assert {"demo", "paper_a_en_de", "paper_b_en_zh"} <= set(recipe.shipped())
    assert Path(sordino.__file__).parent in SHIPPED[0].parents


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_loads(file: Path) -> None:
    found = load(file)
    assert found.model
    assert found.data
    assert "{" not in found.name


def laughs(levels: int, last: str) -> str:
    rows = ["a0: &a0 lol", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1))]
    return "\n".join([*rows, last, ""])


@pytest.mark.parametrize(
    "last", ["seed: *a8", "prompt: *a8", "finetune: *a8", "data: {splits: *a8}", "export: {formats: *a8}"]
)
def test_a_recipe_whose_aliases_explode_is_refused_at_once(tmp_path: Path, last: str) -> None:
    with pytest.raises(RecipeError, match="aliases stand for over"):
        load(write(tmp_path, laughs(8, last)))


@pytest.mark.parametrize(
    "value",
    ["2024-99-99", "!!int abc", "!!float abc", "!!bool abc", "!!timestamp abc", "0x_", "0b_", "1" * 5000, "[" * 3000],
)
def test_values_that_yaml_itself_cannot_make(tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError, match=r"seed: .* is not a YAML value") as caught:
        load(write(tmp_path, "model: m\n"), [f"seed={value}"])
    assert len(str(caught.value)) < 500
    with pytest.raises(RecipeError):
        load(write(tmp_path, f"seed: {value}\n"))


def test_numbers_that_no_type_holds(tmp_path: Path) -> None:
    for key in ("seed", "finetune.lr", "finetune.epochs", "rank.remove", "export.budget_gb"):
        with pytest.raises(RecipeError, match="hundreds of digits"):
            load(write(tmp_path, "model: m\n"), [f"{key}={'9' * 400}"])


def test_what_is_quoted_is_clipped_and_printable(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, 'seed: "\\e[2J"\n? [a, b]\n: 1\n"\\e[31m": 2\nlr: ' + "x" * 10**6 + "\n"))
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 1500


def test_a_setting_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:3: the key 'seed' stands there twice"):
        load(write(tmp_path, "model: m\nseed: 1\nseed: 2\n"))


@pytest.mark.parametrize(
    "name", ["{source:>2000000000}", "{source.__class__}", "{x}", "{", "}", "{}", "a\nb", "\x1b[2J", "x" * 300, "{0}"]
)
def test_names_that_no_directory_should_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="name: ") as caught:
        load(write(tmp_path, "model: m\ndata: {path: x}\n"), [f"name={json.dumps(name)}"])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["out", "model", "data.path", "name", "prompt.instruction"])
def test_nul_is_in_no_setting(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"{key}: .* holds NUL"):
        load(write(tmp_path, "model: m\ndata: {path: x}\n"), [f'{key}="a\\0b"'])
