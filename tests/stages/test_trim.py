"""Trimming a model whose tokenizer merges: what is inside stays as it was, to the id, the logits and the hypotheses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from sordino.checkpoint.reading import Checkpoint
from sordino.config import recipe as recipes
from sordino.models import loading, prompts, saving
from sordino.models.features import Features
from sordino.models.generation import generate
from sordino.models.speech import SpeechModel
from sordino.pipeline import mixed_precision
from sordino.pipeline.forecast import config_of, forecast
from sordino.pipeline.stage import Job
from sordino.vocabulary import writing
from sordino.vocabulary.tokenizer import token_configs
from sordino.vocabulary.trimming import ID_KEYS
from tests import tiny
from tests.stages.runs import (
    Made,
    answer,
    jsonl,
    recipe_file,
    refusal,
    run,
    stage_json,
    write_corpus,
    write_longer,
    write_merging,
)

STORM = "Ein Sturm zieht auf."
TEXT = f"Der ist. {STORM} Zwanzig kleine Boote liegen im Hafen. Translate the English speech into German: "
PLAIN: dict[str, Any] = dict.fromkeys(("finetune", "rank", "prune", "pseudolabel", "distil", "qlora", "merge"))
CHANGES = PLAIN | {"trim": {}, "export": {"formats": ["bf16"]}, "evaluate": {"bootstrap": 0}}


class Trimmed:
    """A run that only trims the base model; in its corpus the test split alone speaks of a storm."""

    def __init__(self, root: Path, pico: Path) -> None:
        self.model = write_merging(pico, root / "model", TEXT)
        self.corpus = write_corpus(root / "corpus")
        table = self.corpus / "texts.tsv"
        lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
        changed = [[*row[:4], STORM, row[5]] if row[2] == "test" else row for row in lines]
        table.write_text("".join("\t".join(row) + "\n" for row in changed), encoding="utf-8")
        self.recipe = recipe_file(root, self.model, self.corpus, CHANGES)
        run("run", self.recipe)
        self.run = root / "runs" / "run"
        self.out = self.run / "63-trimmed"
        self.coverage = json.loads((self.out / "coverage.json").read_text(encoding="utf-8"))
        self.before, self.after = (
            loading.load_checkpoint(str(path), device="cpu", dtype="float32") for path in (self.model, self.out)
        )
        # by name, not by the order that is to be tested
        new = self.after.processor.tokenizer.get_vocab()
        self.kept = {i: new[token] for token, i in self.before.processor.tokenizer.get_vocab().items() if token in new}


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory, pico_dir: Callable[[str], Path]) -> Trimmed:
    return Trimmed(tmp_path_factory.mktemp("trimmed"), pico_dir("qwen2_audio"))


def texts(trimmed: Trimmed, split: str) -> list[str]:
    return [row["target_text"] for row in jsonl(trimmed.run / "10-data" / f"{split}.jsonl")]


def tokens(speech: SpeechModel, text: str) -> list[int]:
    found: list[int] = speech.processor.tokenizer.encode(text, add_special_tokens=False)
    return found


def test_stock_transformers_loads_it(trimmed: Trimmed) -> None:
    processor = transformers.AutoProcessor.from_pretrained(str(trimmed.out))
    model = getattr(transformers, trimmed.before.family.model_class).from_pretrained(str(trimmed.out))
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == model.get_output_embeddings().weight.shape[0] == model.config.text_config.vocab_size
    assert rows == trimmed.coverage["rows"]["after"] < trimmed.coverage["rows"]["before"] - 20
    assert rows % 8 == 0
    assert len(processor.tokenizer) == rows - 1  # and the row that the config names and the tokenizer does not
    old, new = trimmed.before.model.config, model.config
    assert new.audio_token_index == trimmed.kept[old.audio_token_index]
    for name in ("eos_token_id", "pad_token_id"):
        assert getattr(new.text_config, name) == trimmed.kept[getattr(old.text_config, name)]
    assert model.generation_config.pad_token_id == new.text_config.pad_token_id
    assert model.generation_config.eos_token_id == [trimmed.kept[i] for i in trimmed.before.stop_ids()]
    assert new.text_config.bos_token_id == model.generation_config.bos_token_id == rows - 1
    wave = tiny.clip(3, 0.6)
    one, other = (tiny.stock_inputs(s, wave, "Hallo") for s in (trimmed.before, trimmed.after))
    assert [trimmed.kept[i] for i in one["input_ids"][0].tolist()] == other["input_ids"][0].tolist()


def test_everything_else_is_copied(trimmed: Trimmed) -> None:
    old, new = load_file(trimmed.model / "model.safetensors"), load_file(trimmed.out / "model.safetensors")
    assert old.keys() == new.keys()
    cut = [name for name in old if not torch.equal(old[name], new[name])]
    assert sorted(cut) == ["language_model.lm_head.weight", "language_model.model.embed_tokens.weight"]
    for name in cut:
        assert all(torch.equal(old[name][i], new[name][j]) for i, j in trimmed.kept.items())
        assert torch.equal(old[name][trimmed.before.model.config.text_config.bos_token_id], new[name][-1])
    sizes = trimmed.coverage["weights_bytes"]
    assert sizes["before"] - sizes["after"] == sum(old[n].nbytes - new[n].nbytes for n in cut) > 0
    assert not trimmed.after.model.config.tie_word_embeddings


def test_texts_inside_are_cut_as_before_and_others_come_back_whole(trimmed: Trimmed) -> None:
    inside = texts(trimmed, "train")
    assert any(len(tokens(trimmed.before, text)) < len(text.encode()) for text in inside)  # it does merge
    for text in inside:
        assert tokens(trimmed.after, text) == [trimmed.kept[i] for i in tokens(trimmed.before, text)]
    assert not set(tokens(trimmed.before, STORM)) <= set(trimmed.kept)  # only the test split needs it
    for text in (STORM, "日本語 🦦 \x00\t\n é é", ""):
        found = trimmed.after.decode(tokens(trimmed.after, text))
        assert found == trimmed.before.decode(tokens(trimmed.before, text))
    assert len(tokens(trimmed.after, STORM)) > len(tokens(trimmed.before, STORM))


def test_coverage_counts_every_split_and_names_what_is_lost(trimmed: Trimmed) -> None:
    splits = trimmed.coverage["splits"]
    assert {name: one["texts"] for name, one in splits.items()} == {"train": 10, "select": 4, "dev": 2, "test": 4}
    assert splits["train"]["tokens_inside"] == splits["train"]["tokens"] == splits["train"]["tokens_after"]
    storm = [tokens(s, STORM) for s in (trimmed.before, trimmed.after)]
    lost = [i for i in storm[0] if i not in trimmed.kept]
    assert splits["test"] == {
        "texts": 4, "tokens": 4 * len(storm[0]), "texts_inside": 0, "tokens_inside": 4 * (len(storm[0]) - len(lost)),
        "tokens_after": 4 * len(storm[1]), "changed": 0, "texts_inside_percent": 0.0,
        "tokens_inside_percent": round(100 * (1 - len(lost) / len(storm[0])), 3),
    }  # fmt: skip
    assert trimmed.coverage["dropped"]["training"] == []
    named = {row["text"]: row["count"] for row in trimmed.coverage["dropped"]["held_out"]}
    assert named == {trimmed.before.processor.tokenizer.decode([i]): 4 * lost.count(i) for i in set(lost)}
    assert trimmed.coverage["counted"] == ["train"]
    assert stage_json(trimmed.out)["splits"] == splits


def forced(speech: SpeechModel, text: str) -> Tensor:
    """Logits after a prompt with audio and an answer, (B, S, V)."""
    with torch.no_grad():
        encoded = tiny.ask(speech, [tiny.clip(5, 0.7)])
        found: Tensor = speech.model(
            **tiny.embedded(speech, encoded, [speech.answer_ids(text)]), use_cache=False
        ).logits
    return found


def test_logits_of_kept_tokens_are_those_of_before(trimmed: Trimmed) -> None:
    old, new = list(trimmed.kept), list(trimmed.kept.values())
    for text in texts(trimmed, "train")[:3]:
        one, other = forced(trimmed.before, text)[..., old], forced(trimmed.after, text)[..., new]
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_hypotheses_are_the_best_of_the_kept_tokens(trimmed: Trimmed) -> None:
    """As the model before would say them if it could not say the others; so one without those stays as it is."""
    rows = range(trimmed.before.model.config.text_config.vocab_size)
    head = trimmed.before.part("head")
    silent = [i for i in rows if i not in trimmed.kept]
    waves = [tiny.clip(i, 0.5 + 0.2 * (i % 3)) for i in range(6)]
    found: dict[str, list[list[int]]] = {}
    for name, speech in (("free", trimmed.before), ("bound", trimmed.before), ("after", trimmed.after)):
        hook = None
        if name == "bound":
            hook = head.register_forward_hook(lambda *args: args[2].index_fill(-1, torch.tensor(silent), -1e9))
        prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
        features = Features(speech, None)
        clips = [jsonl_clip(trimmed, i) for i in range(len(waves))]
        encoded = [features.encode_waveform(clip, wave, prompt) for clip, wave in zip(clips, waves, strict=True)]
        found[name] = generate(speech, encoded, 12)
        if hook is not None:
            hook.remove()
    assert found["after"] == [[trimmed.kept[i] for i in ids] for ids in found["bound"]]
    assert found["free"] != found["bound"]  # the random model would say dropped tokens too
    for free, after in zip(found["free"], found["after"], strict=True):
        if set(free) <= set(trimmed.kept):
            assert after == [trimmed.kept[i] for i in free]


def jsonl_clip(trimmed: Trimmed, index: int) -> Any:
    from sordino.data import manifest

    return manifest.read(trimmed.run / "10-data" / "train.jsonl")[index]


def test_it_is_a_system_of_its_own_and_what_is_exported(trimmed: Trimmed, capsys: pytest.CaptureFixture[str]) -> None:
    scores = json.loads((trimmed.run / "85-scores" / "scores.json").read_text())["systems"]
    assert list(scores) == ["base", "trimmed", "bf16"]
    assert [p["path"] for p in stage_json(trimmed.run / "70-export")["parents"]] == ["63-trimmed"]
    exported = Checkpoint.open(trimmed.run / "70-export" / "bf16")
    assert exported.tensors["language_model.lm_head.weight"].shape[0] == trimmed.coverage["rows"]["after"]
    assert answer(capsys, "run", trimmed.recipe)["ran"] == []
    one, other = (jsonl(trimmed.run / "80-outputs" / name / "test.jsonl") for name in ("trimmed", "bf16"))
    assert [row["id"] for row in one] == [row["id"] for row in other]
    card = answer(capsys, "translate", trimmed.out, trimmed.corpus / "clip16.flac", "--max-new-tokens", "6")
    assert card["hypotheses"][0]["text"] == one[0]["text"]


@pytest.mark.parametrize("wanted", ["", "trim.tokens=330"])
def test_the_plan_knows_the_bytes_before(trimmed: Trimmed, wanted: str, tmp_path: Path) -> None:
    """The corpus has been read, nothing trimmed yet."""
    loaded = recipes.load(trimmed.recipe, [f"out={tmp_path}", *filter(None, [wanted])])
    run("prepare", trimmed.recipe, f"out={tmp_path}")
    found = forecast(loaded, config_of(loaded) or {})
    run("trim", trimmed.recipe, f"out={tmp_path}", *filter(None, [wanted]))
    run("export", trimmed.recipe, f"out={tmp_path}", *filter(None, [wanted]))
    beside = sum(f.stat().st_size for f in trimmed.model.iterdir() if f.suffix != ".safetensors")
    for stage, directory in (("trim", "63-trimmed"), ("export", "70-export/bf16")):
        weights = (tmp_path / "run" / directory / "model.safetensors").stat().st_size
        assert found[stage].size - beside == pytest.approx(weights, rel=0.001)
    if wanted:
        vocabulary = json.loads((tmp_path / "run/63-trimmed/config.json").read_text())["text_config"]["vocab_size"]
        assert vocabulary == 330


def test_a_model_in_32_bits_is_written_in_16(trimmed: Trimmed, tmp_path: Path) -> None:
    saving.save(trimmed.before, tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    run("prepare", trimmed.recipe, f"out={tmp_path}")
    run("trim", trimmed.recipe, f"out={tmp_path}", f"model={tmp_path / 'wide'}")
    wide, known = (load_file(one / "model.safetensors") for one in (tmp_path / "run" / "63-trimmed", trimmed.out))
    assert known.keys() == wide.keys()
    assert all(torch.equal(known[name], wide[name]) for name in known)
    assert (tmp_path / "run/63-trimmed/config.json").read_text() == (trimmed.out / "config.json").read_text()


def test_rows_are_read_where_they_lie(trimmed: Trimmed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SPAN", 16)
    stored = Checkpoint.open(trimmed.model)
    name = "language_model.lm_head.weight"
    rows = [0, 1, 15, 16, 40, 41, 300, 7, 9, 301]
    pieces = list(writing.gathered(stored, name, rows))
    assert torch.equal(torch.cat(pieces), stored.read(name)[torch.tensor(rows)])
    assert len(pieces) == 6


def test_refusals(
    trimmed: Trimmed, pico_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [trimmed.recipe, f"out={tmp_path}"]
    run("prepare", *words)
    assert "trim.tokens: 100, but the bytes" in refusal(capsys, "trim", *words, "trim.tokens=100")
    assert not (tmp_path / "run" / "63-trimmed").exists()
    tekken = recipe_file(tmp_path / "voxtral", pico_dir("voxtral"), trimmed.corpus, CHANGES)
    damaged = shutil.copytree(trimmed.model, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((trimmed.model / "model.safetensors").read_bytes()[:5000])
    assert "model.safetensors is truncated" in refusal(capsys, "trim", *words, f"model={damaged}")
    for command in ("plan", "run"):
        assert "tekken" in refusal(capsys, command, tekken)
    assert not (tmp_path / "voxtral" / "runs").exists()
    adapter = {"qlora": {"mix": {"pseudo": False}}, "export": None}
    assert "add merge:, or say trim.of" in refusal(capsys, "plan", *words, *map(override, adapter.items()))
    assert "'extra' needs data.extra" in refusal(capsys, "plan", *words, "trim.splits=[train, extra]")
    assert "there are no texts" in refusal(capsys, "plan", *words, "trim.splits=[]")
    assert "is not one of" in refusal(capsys, "plan", *words, "trim.splits=[test]")


def override(item: tuple[str, Any]) -> str:
    return f"{item[0]}={'' if item[1] is None else json.dumps(item[1])}"


def test_a_budget_knows_which_layers_are_gone(made: Made) -> None:
    """The next removals of a trimmed model are those of the model it was made from."""
    _ = made.finished
    job = Job(recipes.load(made.root / "recipe.yaml", ["prune.remove=1"]), made.root, {})
    assert mixed_precision.ranked_next(job, "trimmed") == mixed_precision.ranked_next(job, "student")
    assert len(mixed_precision.ranked_next(job, "trimmed")) == 1
    assert len(mixed_precision.ranked_next(job, "teacher")) == 2


def test_a_tokenizer_with_byte_fallback_and_a_tied_head(
    pico_dir: Callable[[str], Path], made: Made, tmp_path: Path
) -> None:
    """Gemma's: ids in config.json and in the generation config follow, logits of kept tokens are as before."""
    recipe = recipe_file(tmp_path, pico_dir("gemma4_unified"), made.corpus, CHANGES)
    run("run", recipe)
    out = tmp_path / "runs" / "run" / "63-trimmed"
    coverage = json.loads((out / "coverage.json").read_text(encoding="utf-8"))
    assert coverage["rows"]["after"] < coverage["rows"]["before"]
    assert {split["changed"] for split in coverage["splits"].values()} == {0}
    old, new = (
        loading.load_checkpoint(str(path), device="cpu", dtype="float32") for path in (pico_dir("gemma4_unified"), out)
    )
    assert new.model.get_output_embeddings().weight is new.model.get_input_embeddings().weight
    names, ids = old.processor.tokenizer.convert_ids_to_tokens, new.processor.tokenizer.get_vocab()
    assert new.suppressed_ids() == [ids[name] for name in names(old.suppressed_ids())]
    assert new.stop_ids() == [ids[name] for name in names(old.stop_ids())]
    for key in ("audio_token_id", "boa_token_id", "image_token_id", "video_token_id", "eoa_token_index"):
        assert getattr(new.model.config, key) == ids[names([getattr(old.model.config, key)])[0]]
    for tensor in old.model.state_dict().values():  # trimming writes 16 bits
        tensor.copy_(tensor.bfloat16())
    clip = tiny.clip(3, 0.8)
    kept = [i for i, name in enumerate(names(list(range(len(old.processor.tokenizer))))) if name in ids]
    before, after = (tiny.logits(one, tiny.ask(one, [clip]))[0, -1] for one in (old, new))
    torch.testing.assert_close(after[[ids[names([i])[0]] for i in kept]], before[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["audioflamingo3", "granite_speech", "qwen2_5_omni", "qwen3_asr"])
def test_other_families_of_byte_level_tokenizers(
    pico_dir: Callable[[str], Path], made: Made, tmp_path: Path, family: str
) -> None:
    """Ids follow wherever a config names one, logits of kept tokens are as before, and nothing else changes."""
    model = write_longer(pico_dir(family), tmp_path / "model", TEXT)
    run("run", recipe_file(tmp_path, model, made.corpus, CHANGES))
    out = tmp_path / "runs" / "run" / "63-trimmed"
    coverage = json.loads((out / "coverage.json").read_text(encoding="utf-8"))
    assert coverage["rows"]["after"] < coverage["rows"]["before"] - 20
    assert {split["changed"] for split in coverage["splits"].values()} == {0}
    old, new = (loading.load_checkpoint(str(path), device="cpu", dtype="float32") for path in (model, out))
    names, ids = old.processor.tokenizer.convert_ids_to_tokens, new.processor.tokenizer.get_vocab()
    assert new.stop_ids() == [ids[name] for name in names(old.stop_ids())]
    for one, other in zip(*(token_configs(s, s.model.config) for s in (old, new)), strict=True):
        named = [key for key in one.to_dict() if ID_KEYS.search(key) and isinstance(getattr(one, key), int)]
        assert [getattr(other, key) for key in named] == [ids[names(getattr(one, key))] for key in named]
    stock = getattr(transformers, new.family.model_class).from_pretrained(str(out))
    assert stock.get_output_embeddings().weight.shape[0] == coverage["rows"]["after"]
    assert tiny.is_tied(new) == tiny.is_tied(old)
    files = [load_file(path / "model.safetensors") for path in (model, out)]
    assert files[0].keys() == files[1].keys()
    cut = [name for name, tensor in files[0].items() if not torch.equal(tensor, files[1][name])]
    assert {part for name in cut for part in ("embed_tokens", "lm_head") if part in name} == (
        {"embed_tokens"} if tiny.is_tied(old) else {"embed_tokens", "lm_head"}
    )
    assert len(cut) == (1 if tiny.is_tied(old) else 2)
    kept = [i for i, name in enumerate(names(list(range(len(old.processor.tokenizer))))) if name in ids]
    section = recipes.load(tmp_path / "recipe.yaml").prompt
    clips = [tiny.clip(3, 0.8)]
    before, after = (
        tiny.logits(s, s.family.audio.prepare(s.processor, clips, [prompts.render(s, section, "en", "de")]))[0, -1]
        for s in (old, new)
    )
    torch.testing.assert_close(after[[ids[names([i])[0]] for i in kept]], before[kept], atol=1e-4, rtol=1e-4)
