"""A trimmed tokenizer cuts every text of kept tokens as before, whatever the merges and their order."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sordino.errors import FamilyError, RecipeError
from sordino.vocabulary import trimming
from sordino.vocabulary.trimming import Bpe, Kept, choose, cover, trim_tokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
DOCS = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
GERMAN = (
    "Der Zug nach Köln fährt heute später ab, weil es seit dem Morgen geregnet hat. Die Fenster sind offen, und das "
    "Brot ist schon wieder kalt. Sieben grüne Vögel saßen überm Eingang; niemand weiß, wohin sie geflogen sind. "
    "Übersetzen heißt, für jedes Wort ein anderes zu suchen und am Ende doch dasselbe gesagt zu haben. 这是一个句子。"
)


def byte_level(model: models.BPE) -> Tokenizer:
    """As Qwen2's: NFC, its pattern, bytes; two added tokens, one of them not special."""
    made = Tokenizer(model)
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def byte_fallback(model: models.BPE) -> Tokenizer:
    """As Gemma's: characters with a sign for the space, and bytes for those that are no tokens."""
    options = {"fuse_unk": True, "unk_token": "<unk>", "byte_fallback": True}
    content = json.loads(Tokenizer(model).to_str())["model"] | options
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    found: Tokenizer = Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"model": content}))
    return found


BYTES = {byte_level: ALPHABET, byte_fallback: ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abc"]}
EACH_KIND = pytest.mark.parametrize("kind", BYTES)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    made = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=ALPHABET, show_progress=False)
    made.train_from_iterator([GERMAN, *(file.read_text(encoding="utf-8") for file in DOCS)], trainer)
    made.add_special_tokens(["<|end|>", "<|AUDIO|>"])
    made.add_tokens([AddedToken("Audio 1: ", normalized=True)])
    return made


def parsed(tokenizer: Tokenizer) -> Bpe:
    return Bpe(json.loads(tokenizer.to_str()))


def rebuilt(bpe: Bpe, kept: Kept) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(trim_tokenizer(bpe, kept)))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    encoded: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return encoded


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Any merges over three letters: tokens that several pairs make, ranks against the order of making."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(1, 25))):
        both = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if both not in merges:
            merges.append(both)
            if "".join(both) not in tokens:
                tokens.append("".join(both))
    return draw(st.permutations(merges))


@EACH_KIND
@settings(max_examples=300, deadline=None)
@given(
    merges=merge_lists(), whole=st.booleans(), words=st.lists(st.text("abc ä", max_size=30), max_size=8), data=st.data()
)
def test_any_merges_any_choice(
    kind: Callable[[models.BPE], Tokenizer],
    merges: list[tuple[str, str]],
    whole: bool,
    words: list[str],
    data: st.DataObject,
) -> None:
    names = list(dict.fromkeys([*BYTES[kind], *("".join(both) for both in merges)]))
    full = kind(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges, ignore_merges=whole))
    bpe = parsed(full)
    frequent = data.draw(st.sets(st.sampled_from(range(len(names))), max_size=6))
    kept = choose(bpe, (), Counter(frequent))
    small = rebuilt(bpe, kept)
    before, after = [ids(full, word) for word in words], [ids(small, word) for word in words]
    coverage, dropped = cover(before, after, kept)
    assert coverage.changed == 0
    assert coverage.texts_inside == sum(set(one) <= set(kept.rows) for one in before)
    outside = sum(i not in kept.new for one in before for i in one)
    assert coverage.tokens - coverage.tokens_inside == dropped.total() == outside
    assert [small.decode(one) for one in after] == [full.decode(one) for one in before]
    # without the texts' own tokens in the choice the test would rarely see one inside
    own = choose(bpe, (), Counter(itertools.chain.from_iterable(before)))
    again = rebuilt(bpe, own)
    assert [ids(again, word) for word in words] == [[own.new[i] for i in one] for one in before]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80), size=st.integers(300, 1400), seed=st.integers(0, 5))
def test_no_text_is_out_of_reach(trained: Tokenizer, text: str, size: int, seed: int) -> None:
    bpe = parsed(trained)
    counts = Counter(random.Random(seed).choices(range(len(bpe)), k=500))
    kept = choose(bpe, (), counts, size)
    assert len(kept.rows) == kept.tokens == size
    small = rebuilt(bpe, kept)
    assert small.decode(ids(small, text), skip_special_tokens=False) == trained.decode(
        ids(trained, text), skip_special_tokens=False
    )
    assert cover([ids(trained, text)], [ids(small, text)], kept)[0].changed == 0


def test_the_corpus_is_cut_as_before(trained: Tokenizer) -> None:
    bpe = parsed(trained)
    lines = [GERMAN, *itertools.chain.from_iterable(file.read_text(encoding="utf-8").split("\n") for file in DOCS)]
    covered, others = lines[:40], lines[40:]
    kept = choose(bpe, (), Counter(i for line in covered for i in ids(trained, line)))
    assert len(kept.rows) % trimming.MULTIPLE == 0
    assert len(kept.rows) < len(bpe) - 100
    small = rebuilt(bpe, kept)
    assert [ids(small, line) for line in covered] == [[kept.new[i] for i in ids(trained, line)] for line in covered]
    coverage, dropped = cover([ids(trained, line) for line in others], [ids(small, line) for line in others], kept)
    assert coverage.changed == 0
    assert 0 < coverage.texts_inside < coverage.texts == len(others)
    assert coverage.tokens_after > coverage.tokens > coverage.tokens_inside
    assert dropped.total() == coverage.tokens - coverage.tokens_inside
    assert coverage.to_json()["tokens_inside_percent"] == round(100 * coverage.tokens_inside / coverage.tokens, 3)


def test_the_small_tokenizer_numbers_as_was_chosen(trained: Tokenizer) -> None:
    bpe = parsed(trained)
    kept = choose(bpe, ids(trained, "Übersetzen"), {}, 400)
    small = rebuilt(bpe, kept)
    names = {i: name for name, i in trained.get_vocab(with_added_tokens=True).items()}
    assert small.get_vocab(with_added_tokens=True) == {names[old]: new for new, old in enumerate(kept.rows)}
    assert small.token_to_id("<|end|>") is not None
    assert ids(small, "<|end|>Audio 1: Übersetzen") == [kept.new[i] for i in ids(trained, "<|end|>Audio 1: Übersetzen")]


def test_the_most_frequent_come_first_and_merge_order_fills(trained: Tokenizer) -> None:
    bpe = parsed(trained)
    least = choose(bpe, (), {}, len(bpe.bytes | bpe.added))
    rare, often = bpe.ids["Ġt"], bpe.ids["er"]
    assert not {rare, often} & set(least.rows)
    one = choose(bpe, (), {rare: 1, often: 2}, len(least.rows) + 1)
    assert set(one.rows) - set(least.rows) == {often}
    filled = choose(bpe, (), {}, len(least.rows) + 3)
    assert set(filled.rows) - set(least.rows) == {bpe.ids["".join(both)] for both in bpe.merges[:3]}
    everything = choose(bpe, (), {}, 10**6)
    assert everything.rows == tuple(range(len(bpe)))
    with pytest.raises(RecipeError, match=r"trim\.tokens: 20"):
        choose(bpe, (), {}, 20)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("model", "type"), "Unigram", "is no BPE"),
        (("model", "dropout"), 0.1, "at random"),
        (("model", "end_of_word_suffix"), "</w>", "marks parts"),
        (("pre_tokenizer",), {"type": "Metaspace"}, "into bytes"),
        (("pre_tokenizer",), None, "into bytes"),
        (("model", "vocab"), {"a": 0}, "256 bytes"),
        (("model", "byte_fallback"), True, "256 bytes"),
    ],
)
def test_other_tokenizers_are_refused(trained: Tokenizer, path: tuple[str, ...], value: Any, why: str) -> None:
    content = json.loads(trained.to_str())
    *outer, last = path
    place = content[outer[0]] if outer else content
    place[last] = value
    with pytest.raises(FamilyError, match=why):
        Bpe(content)


def test_bytes_that_are_merged_are_refused() -> None:
    names = [*BYTES[byte_fallback], "<0x41><0x42>"]
    full = byte_fallback(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[("<0x41>", "<0x42>")]))
    with pytest.raises(FamilyError, match="merges the bytes"):
        parsed(full)


def test_older_forms_of_the_files(trained: Tokenizer) -> None:
    content = json.loads(trained.to_str())
    content["model"]["merges"] = [" ".join(both) for both in content["model"]["merges"]]
    content["padding"] = {"pad_id": trained.token_to_id("<|end|>"), "pad_token": "<|end|>"}
    end = trained.token_to_id("<|end|>")
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "BertProcessing", "sep": ["<|end|>", end], "cls": ["<|AUDIO|>", end + 1]},
            {"type": "TemplateProcessing", "special_tokens": {"x": {"id": "x", "ids": [end], "tokens": ["<|end|>"]}}},
        ],
    }
    bpe = Bpe(content)
    kept = choose(bpe, (), {}, 400)
    trimmed = trim_tokenizer(bpe, kept)
    assert trimmed["model"]["merges"] and all(isinstance(merge, str) for merge in trimmed["model"]["merges"])
    new = kept.new[end]
    assert trimmed["padding"]["pad_id"] == new
    one, other = trimmed["post_processor"]["processors"]
    assert (one["sep"], one["cls"]) == (["<|end|>", new], ["<|AUDIO|>", new + 1])
    assert other["special_tokens"]["x"]["ids"] == [new]
    assert content["padding"]["pad_id"] == end  # the original is unchanged
    decoder = {"added_tokens_decoder": {str(end): {"content": "<|end|>"}}, "eos_token": "<|end|>"}
    trimmed = trimming.trim_tokenizer_config(decoder, kept)
    assert trimmed == {"added_tokens_decoder": {str(new): {"content": "<|end|>"}}, "eos_token": "<|end|>"}


def test_configs_are_renumbered() -> None:
    kept = Kept((0, 5, 9, 12), 3)
    config = {
        "vocab_size": 16, "eos_token_id": [5, 9], "pad_token_id": -1, "audio_token_index": 12, "num_beams": 5,
        "suppress_tokens": None, "max_new_tokens": 9, "bad_words_ids": [[5], [9, 0]],
    }  # fmt: skip
    assert trimming.named_ids(config, 16) == {0, 5, 9, 12}
    assert trimming.renumber(config | {"forced_bos_token_id": 99}, kept) == {
        "vocab_size": 4, "eos_token_id": [1, 2], "pad_token_id": -1, "audio_token_index": 3, "suppress_tokens": None,
        "bad_words_ids": [[1], [2, 0]], "forced_bos_token_id": 99,
    }  # fmt: skip
    assert "vocab_size" not in trimming.renumber({"eos_token_id": 5}, kept)
    with pytest.raises(FamilyError, match="sequence_bias"):
        trimming.named_ids({"sequence_bias": {"(1,)": 0.5}}, 16)
