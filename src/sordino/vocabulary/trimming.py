"""A smaller vocabulary for a BPE model of bytes: which tokens stay, and everything that counts or names tokens.

BPE joins, again and again, the adjacent pair of lowest rank. A token is never taken apart, so all joins inside a token
of the result come from its own characters: its pieces are the same in every text. Keep a token together with its
pieces, and every join of a text that ends in kept tokens is still in the list of merges; the joins that are no longer
there had lost against those at every step. Such a text is therefore cut exactly as before. Any other text is cut into
smaller kept pieces, in the end into the 256 bytes, so that no text is out of reach. docs/vocabulary.md has the proof.

Bytes come in two ways: byte-level BPE (Qwen's) merges bytes; with byte fallback (Gemma's) characters are merged, and
one that is no token becomes its bytes, which no merge joins.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from sordino.errors import FamilyError, RecipeError

# rows of the head: matrix products on GPUs are slow where this does not divide them
MULTIPLE = 8
SIZE_KEYS = ("vocab_size", "vocab_size_per_layer_input")  # settings that count the rows of a table of tokens
# settings of a config that hold token ids, one or lists of them
ID_KEYS = re.compile(r"_token_ids?$|_token_index$|^(?:begin_)?suppress_tokens$|^(?:bad|force)_words_ids$")
SPACE = "▁"  # what byte fallback writes for a space: as bytes it would not become one again
# where ids and other numbers are mixed
MIXED_KEYS = ("forced_decoder_ids", "sequence_bias")


class Bpe:
    """A tokenizer.json with a BPE model that reaches down to bytes, and the pieces of its tokens.

    ids: of the model's tokens; bytes: those that always stay; added: ids of the added tokens (special or not), which
    are found before any merging. Raises FamilyError for any other tokenizer.
    """

    def __init__(self, tokenizer: Mapping[str, Any]) -> None:
        model = tokenizer.get("model") or {}
        fallback = bool(model.get("byte_fallback"))
        alphabet = [*(f"<0x{byte:02X}>" for byte in range(256)), SPACE] if fallback else ByteLevel.alphabet()
        vocabulary = model.get("vocab")
        merges = [pair(merge) for merge in model.get("merges") or ()]
        joined = {part for both in merges for part in (*both, "".join(both))} & set(alphabet[:256]) if fallback else ()
        for wrong, why in (
            (model.get("type") != "BPE" or not isinstance(vocabulary, dict), "is no BPE"),
            (model.get("dropout"), "drops merges at random"),
            (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"), "marks parts of words"),
            (not (fallback or _byte_level(tokenizer)), "does not cut text into bytes"),
            (joined, "merges the bytes that characters fall back to"),
            (not set(alphabet) <= set(vocabulary or ()), "lacks some of the 256 bytes"),
        ):
            if wrong:
                raise FamilyError(
                    f"this model's tokenizer {why}, and only BPE down to bytes can be trimmed.", "Leave trim: out."
                )
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = model["vocab"]
        self.tokens = {i: token for token, i in self.ids.items()}
        self.bytes = {self.ids[character] for character in alphabet}
        self.added = {int(entry["id"]) for entry in tokenizer["added_tokens"]}
        self.merges = merges
        self.ranks = {merge: rank for rank, merge in enumerate(self.merges)}
        self.splits: dict[str, tuple[str, str] | None] = {}

    def __len__(self) -> int:
        return len(self.tokens.keys() | self.added)

    def split(self, token: str) -> tuple[str, str] | None:
        """The two pieces whose join makes a token; None for a single character and where merging never makes it."""
        if token not in self.splits:
            parts = list(token)
            while len(parts) > 2:
                rank, at = min(
                    (self.ranks.get(both, len(self.ranks)), i) for i, both in enumerate(itertools.pairwise(parts))
                )
                if rank == len(self.ranks):
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            joined = (parts[0], parts[1]) if len(parts) == 2 else None
            self.splits[token] = joined if joined in self.ranks else None
        return self.splits[token]

    def pieces(self, token: int) -> set[int]:
        """The token and all that merging makes on the way to it, ids."""
        pieces, waiting = {token}, [token]
        while waiting:
            parts = self.split(self.tokens.get(waiting.pop(), "")) or ()
            waiting += {self.ids[part] for part in parts} - pieces
            pieces |= {self.ids[part] for part in parts}
        return pieces


@dataclass(frozen=True)
class Kept:
    """rows: the old id of every new id, in the old order; the first `tokens` of them are the tokenizer's, the others
    rows that a config names and the tokenizer does not."""

    rows: tuple[int, ...]
    tokens: int

    @functools.cached_property
    def new(self) -> dict[int, int]:
        """Old id -> new id."""
        return {old: new for new, old in enumerate(self.rows)}


def choose(bpe: Bpe, required: Iterable[int], counts: Mapping[int, int], size: int | None = None) -> Kept:
    """Tokens to keep: added tokens, bytes, `required`, then those in `counts`, the most frequent first; all with their
    pieces.

    size: so many rows, exactly if there are enough tokens; what the counts leave free goes to the tokens of the first
    merges. Default: all in `counts`, and so many more that MULTIPLE divides the rows.
    Raises RecipeError where the required tokens alone are more.
    """
    kept = bpe.bytes.union(*(bpe.pieces(token) for token in {*bpe.added, *required}))
    if size is not None and len(kept) > size:
        raise RecipeError(
            f"trim.tokens: {size}, but the bytes, the added tokens and the prompt's are {len(kept)}.", "Raise it."
        )
    frequent = sorted(counts, key=lambda token: (-counts[token], token))
    if size is None:
        kept = kept.union(*(bpe.pieces(token) for token in frequent))
        size = -(-len(kept) // MULTIPLE) * MULTIPLE
    merged = (bpe.ids[first + second] for first, second in bpe.merges)
    for token in itertools.chain(frequent, (token for token in merged if bpe.split(bpe.tokens[token]))):
        if len(kept) == size:
            break
        more = bpe.pieces(token) - kept
        if len(kept) + len(more) <= size:
            kept |= more
    bare = kept - bpe.tokens.keys() - bpe.added
    return Kept((*sorted(kept - bare), *sorted(bare)), len(kept - bare))


def trim_tokenizer(bpe: Bpe, kept: Kept) -> dict[str, Any]:
    """tokenizer.json with the kept tokens alone: vocabulary, merges, and every id that it names."""
    new = kept.new
    trimmed = copy.deepcopy(dict(bpe.tokenizer))
    model = trimmed["model"]
    model["vocab"] = {bpe.tokens[old]: i for i, old in enumerate(kept.rows) if old in bpe.tokens}
    model["merges"] = [
        merge
        for merge in model["merges"]
        if all(part in model["vocab"] for part in (*pair(merge), "".join(pair(merge))))
    ]
    for entry in trimmed["added_tokens"]:
        entry["id"] = new[entry["id"]]
    if trimmed.get("padding"):
        trimmed["padding"]["pad_id"] = new[trimmed["padding"]["pad_id"]]
    if trimmed.get("post_processor"):
        _post_processor(trimmed["post_processor"], new)
    return trimmed


def trim_tokenizer_config(config: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """tokenizer_config.json, whose older form lists the added tokens by id."""
    trimmed = dict(config)
    if "added_tokens_decoder" in trimmed:
        trimmed["added_tokens_decoder"] = {
            str(kept.new[int(old)]): entry for old, entry in config["added_tokens_decoder"].items()
        }
    return trimmed


def named_ids(config: Mapping[str, Any], rows: int) -> set[int]:
    """Token ids that a config (one section of it) names. What is outside the rows of the embedding names no token.

    Raises FamilyError for a setting in which ids and other numbers are mixed.
    """
    for key in MIXED_KEYS:
        if config.get(key):
            raise FamilyError(f"the model's configuration sets {key}, which trimming cannot renumber.", "Take it out.")
    return {i for key, value in config.items() if ID_KEYS.search(key) for i in _numbers(value) if 0 <= i < rows}


def renumber(config: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """The settings of a config (one section of it) that count or name tokens, for the kept ones."""
    ids = {key: _renumbered(value, kept.new) for key, value in config.items() if ID_KEYS.search(key)}
    return ids | {key: len(kept.rows) for key in SIZE_KEYS if key in config}


@dataclass
class Coverage:
    """Of the texts of one split. inside: made of kept tokens alone, by the tokenizer as it was; after: tokens that the
    trimmed tokenizer needs; changed: texts inside that it cuts differently, of which there must be none."""

    texts: int = 0
    tokens: int = 0
    texts_inside: int = 0
    tokens_inside: int = 0
    tokens_after: int = 0
    changed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps, with the two shares in per cent."""
        shares = {
            f"{name}_inside_percent": round(100 * inside / total, 3) if total else None
            for name, inside, total in (
                ("texts", self.texts_inside, self.texts),
                ("tokens", self.tokens_inside, self.tokens),
            )
        }
        return {**vars(self), **shares}


def cover(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], kept: Kept) -> tuple[Coverage, Counter[int]]:
    """How much of some texts is inside, and the dropped tokens (old ids) that they have.

    before, after: ids of each text by the tokenizer as it was and as it is.
    """
    coverage, new, dropped = Coverage(), kept.new, Counter[int]()
    for old, trimmed in zip(before, after, strict=True):
        outside = [i for i in old if i not in new]
        dropped.update(outside)
        coverage.texts += 1
        coverage.tokens += len(old)
        coverage.tokens_inside += len(old) - len(outside)
        coverage.tokens_after += len(trimmed)
        if not outside:
            coverage.texts_inside += 1
            coverage.changed += [new[i] for i in old] != list(trimmed)
    return coverage, dropped


def pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge as tokenizer.json writes it, 'a b' in older files."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text becomes the characters that stand for bytes before it is merged."""
    step = tokenizer.get("pre_tokenizer") or {}
    return any(one.get("type") == "ByteLevel" for one in step.get("pretokenizers", [step]))


def _post_processor(step: dict[str, Any], new: Mapping[int, int]) -> None:
    """Renumber, in place, the tokens that a post-processor puts around a text."""
    for inner in step.get("processors", ()):
        _post_processor(inner, new)
    for name in ("sep", "cls"):
        if name in step:
            step[name] = [step[name][0], new[step[name][1]]]
    if isinstance(step.get("special_tokens"), dict):
        for entry in step["special_tokens"].values():
            entry["ids"] = [new[i] for i in entry["ids"]]


def _numbers(value: Any) -> Iterable[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Ids outside the vocabulary (-1, a class's default) stay what they were: nothing."""
    if isinstance(value, (list, tuple)):
        return [_renumbered(item, new) for item in value]
    return new.get(value, value) if isinstance(value, int) else value
