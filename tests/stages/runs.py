"""Whole runs on a pico model: a corpus of made-up clips, recipes as mappings, and the command line in-process."""

from __future__ import annotations

import copy
import functools
import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sordino.cli import main, recipe_commands
from sordino.models import loading, registry, saving
from tests.data import sounds
from tests.tiny import clip

CHANGING = ("run", "sweep", *recipe_commands.STAGES)  # commands that ask before they replace finished work
WORDS = ("rain", "train", "late", "bread", "open", "window", "cold", "green", "seven", "again")
SPLITS = ("train",) * 10 + ("select",) * 4 + ("dev",) * 2 + ("test",) * 4

# the whole chain, as short as it can be and still move every weight
CHAIN: dict[str, Any] = {
    "name": "run",
    "source": "en",
    "target": "de",
    "device": "cpu",
    "data": {},
    "finetune": {"max_steps": 3, "lr": 1e-3, "checkpoint_steps": 1},
    "rank": {"remove": 2, "clips": 3, "max_new_tokens": 4},
    "prune": {},
    "pseudolabel": {"batch_size": 3, "max_new_tokens": 6, "filter": {"cut": False}},
    "distil": {"max_steps": 3, "lr": 1e-3, "checkpoint_steps": 1},
    "qlora": {"max_steps": 3, "rank": 4, "alpha": 8, "lr": 1e-3, "checkpoint_steps": 1},
    "merge": {},
    "trim": {},
    "export": {"formats": ["bf16", "nf4", "w4a16"]},
    "translate": {"max_new_tokens": 6},
    "evaluate": {"bootstrap": 20},
    "report": {"samples": 2},
}


def write_corpus(folder: Path, splits: tuple[str, ...] = SPLITS, start: int = 0) -> Path:
    """A folder corpus: a second of sound a clip, two clips a talk, texts in two languages."""
    folder.mkdir(parents=True)
    rows = ["audio\tgroup\tsplit\ttext_en\ttext_de\ttext_zh"]
    for i, split in enumerate(splits, start):
        name = f"clip{i:02}.flac"
        sounds.save(folder / name, clip(i, 0.4 + 0.1 * (i % 4)))
        word, other = WORDS[i % 10], WORDS[(i * 3 + 1) % 10]
        talk = f"{split}-{i // 2}"
        rows.append(f"{name}\t{talk}\t{split}\tThe {word} is {other}.\tDer {word} ist {other}.\t这是{i}号。")
    (folder / "texts.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_merging(source: Path, directory: Path, text: str, size: int = 420) -> Path:
    """A copy of a pico model whose tokenizer merges bytes as it learnt from a text; random rows for the new tokens.

    Like Qwen2-Audio's, its embedding has more rows than there are tokens; one of these bare rows is named by a config.
    """
    speech = loading.load_checkpoint(str(source), device="cpu", dtype="float32")
    content = json.loads(speech.processor.tokenizer.backend_tokenizer.to_str())
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    learnt.train_from_iterator([text], trainer)
    content["model"] |= {name: json.loads(learnt.to_str())["model"][name] for name in ("vocab", "merges")}
    ids = {}
    for i, entry in enumerate(content["added_tokens"], len(content["model"]["vocab"])):
        ids[entry["content"]] = entry["id"] = i
    model, tokens = speech.model, len(content["model"]["vocab"]) + len(ids)
    model.resize_token_embeddings(tokens + 11)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for part in ("embeddings", "head"):
            speech.part(part).weight.normal_(0, 0.15, generator=generator)
    model.config.audio_token_index = ids["<|AUDIO|>"]
    for config in (model.config.text_config, model.generation_config):
        config.eos_token_id, config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    model.config.text_config.bos_token_id = model.generation_config.bos_token_id = tokens + 3
    model.to(torch.bfloat16)
    saving.save(speech, directory)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    generation = json.loads((directory / "generation_config.json").read_text())  # by the tokenizer of before
    generation |= {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def write_longer(source: Path, directory: Path, text: str, size: int = 340) -> Path:
    """A copy of any byte-level pico model whose tokenizer also merges, as it learnt from a text.

    Random rows for the new tokens, which stand behind the old ones, and for three more. As in Granite's, the
    added tokens are in the vocabulary too.
    """
    speech = loading.load_checkpoint(str(source), device="cpu", dtype="float32")
    tokenizer = speech.processor.tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    learnt.train_from_iterator([text], trainer)
    vocabulary = content["model"]["vocab"]
    merged = sorted(set(learnt.get_vocab()) - set(vocabulary), key=learnt.token_to_id)
    vocabulary |= {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    vocabulary |= {token: i for i, token in enumerate(merged, len(tokenizer))}
    content["model"]["merges"] = json.loads(learnt.to_str())["model"]["merges"]
    before = len(tokenizer)
    speech.model.resize_token_embeddings(before + len(merged) + 3, mean_resizing=False)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for part in ("embeddings", "head"):
            speech.part(part).weight[before:].normal_(0, 0.15, generator=generator)
    speech.model.to(torch.bfloat16)
    saving.save(speech, directory)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def recipe_file(directory: Path, model: Path, corpus: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write CHAIN with changes; a section of None is left out, a mapping is merged into the section."""
    recipe = copy.deepcopy(CHAIN)
    recipe |= {"model": str(model), "out": str(directory / "runs")}
    recipe["data"] = {"path": str(corpus)}
    for key, value in (changes or {}).items():
        if value is None:
            recipe.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(recipe.get(key), dict):
            recipe[key] |= value
        else:
            recipe[key] = value
    for name in ("translate", "evaluate", "report"):  # on unless they are switched off
        recipe.setdefault(name, False)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return file


def run(*words: str | Path) -> None:
    """The command line, which must succeed; finished work may be replaced."""
    yes = ["--yes"] if words[0] in CHANGING else []
    code = main([*(str(word) for word in words), *yes])
    assert code == 0, f"sordino {' '.join(map(str, words))} ended with {code}"


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The command's --json answer: one object on the last line of stdout."""
    capsys.readouterr()
    run(*words, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one message of a command that must end with 2."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 2, f"sordino {' '.join(map(str, words))} ended with {code}\n{err}"
    assert "Traceback" not in err
    assert out == ""
    assert err.count("sordino: ") == 1
    return err[err.index("sordino: ") :]


def stage_json(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "stage.json").read_text(encoding="utf-8"))
    return found


def jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@dataclass
class Made:
    """model, corpus: directories; the finished run of CHAIN is made when it is first asked for."""

    root: Path
    model: Path
    corpus: Path

    @classmethod
    def in_directory(cls, root: Path) -> Made:
        registry.get("qwen2_audio").tiny(str(root / "model"), 6, 3, 1)
        gc.freeze()  # `translate` collects garbage for every system: spare it the imported libraries
        return cls(root, root / "model", write_corpus(root / "corpus"))

    def recipe(self, directory: Path, changes: Mapping[str, Any] | None = None) -> Path:
        """A recipe for this model and corpus whose runs go to `directory`."""
        return recipe_file(directory, self.model, self.corpus, changes)

    @functools.cached_property
    def finished(self) -> Path:
        """The run's directory."""
        run("run", self.recipe(self.root))
        return self.root / "runs" / "run"

    def copied(self, directory: Path, changes: Mapping[str, Any] | None = None, stages: Sequence[str] = ()) -> Path:
        """A recipe with changes beside a copy of the finished run (or of some of its stages)."""
        names = stages or [p.name for p in self.finished.iterdir()]
        for name in names:
            shutil.copytree(self.finished / name, directory / "runs" / "run" / name)
        return self.recipe(directory, changes)
