"""Splits: disjoint by group, the same for a seed whatever the order, and never empty without a word."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.data.clip import Clip
from sordino.data.splits import Split, assign, check_groups
from sordino.errors import DataError, RecipeError

from .sounds import clip


def corpus(groups: list[str | None]) -> list[Clip]:
    return [clip(f"c{index:03d}", group=group) for index, group in enumerate(groups)]


def ids(result: dict[Split, list[Clip]]) -> dict[Split, list[str]]:
    return {split: [one.id for one in clips] for split, clips in result.items()}


@settings(max_examples=150, deadline=None)
@given(
    groups=st.lists(st.none() | st.sampled_from("abcdefghijkl"), min_size=4, max_size=60),
    seed=st.integers(0, 2**32),
    dev=st.integers(1, 8),
    test=st.integers(1, 8) | st.floats(0.05, 0.4),
    data=st.data(),
)
def test_properties(groups: list[str | None], seed: int, dev: int, test: float, data: Any) -> None:
    clips = corpus(groups)
    shuffled = data.draw(st.permutations(clips))
    try:
        result = assign(clips, {"dev": dev, "test": test}, seed)
    except DataError as error:
        with pytest.raises(DataError) as again:
            assign(shuffled, {"dev": dev, "test": test}, seed)
        assert str(again.value) == str(error)
        return
    assert ids(result) == ids(assign(shuffled, {"dev": dev, "test": test}, seed))
    assert sorted(one.id for part in result.values() for one in part) == [one.id for one in clips]
    assert set(result) == {"train", "dev", "test"}
    assert len(result["dev"]) <= dev
    assert len(result["test"]) <= (test if isinstance(test, int) else round(test * len(clips)))
    of: dict[str, Split] = {}
    for split, part in result.items():
        assert part
        for one in part:
            assert one.group is None or of.setdefault(one.group, split) == split


def test_sizes_are_met_exactly_without_groups_and_seeds_differ() -> None:
    clips = corpus([None] * 100)
    first, second = (assign(clips, {"select": 5, "dev": 0.1, "test": 20}, seed) for seed in (1, 2))
    assert {split: len(part) for split, part in first.items()} == {
        "train": 65, "select": 5, "dev": 10, "test": 20,
    }  # fmt: skip
    assert list(first) == ["train", "select", "dev", "test"]
    assert ids(first)["test"] != ids(second)["test"]


def test_another_talk_does_not_reshuffle_the_others() -> None:
    talks = [f"t{number}" for number in range(20) for _ in range(3)]
    before = assign(corpus(talks), {"test": 9}, 0)["test"]
    after = assign([*corpus(talks), clip("new", group="new")], {"test": 9}, 0)["test"]
    assert len({one.group for one in before} & {one.group for one in after}) >= 2


def test_segment_splits_leak_and_group_splits_do_not() -> None:
    clips = corpus([talk for talk in "abcdefgh" for _ in range(10)])

    def shared(result: dict[Split, list[Clip]]) -> set[str | None]:
        return {one.group for one in result["train"]} & {one.group for one in result["test"]}

    assert not shared(assign(clips, {"test": 20}, 0))
    leaking = assign(clips, {"test": 20}, 0, split_by="segment")
    assert len(leaking["test"]) == 20
    assert len(shared(leaking)) > 4


def test_the_corpus_s_own_splits_win_and_the_rest_is_drawn_from_train() -> None:
    clips = corpus(["a", "a", "b", "c", "d", "e"])
    own: dict[str, Split] = {"c000": "test", "c001": "test", "c002": "dev", "c003": "train", "gone": "test"}
    result = assign(clips, {"test": 1, "select": 1}, 0, own)
    assert ids(result)["test"] == ["c000", "c001"]
    assert ids(result)["dev"] == ["c002"]
    assert len(result["select"]) == 1
    assert len(result["train"]) == 2
    everything = assign(clips, {}, 0, dict.fromkeys([one.id for one in clips], "test"))
    assert list(everything) == ["test"]


@pytest.mark.parametrize("other", ["dev", None])
def test_a_group_in_two_given_splits_is_refused(other: Split | None) -> None:
    own: dict[str, Split] = {"c000": "test"} | ({"c001": other} if other else {})
    with pytest.raises(DataError) as caught:
        assign(corpus(["talk_7", "talk_7", "b"]), {}, 0, own)
    assert f"'talk_7' stands in test (clip 'c000') and in {other or 'train'} (clip 'c001')" in str(caught.value)
    assert caught.value.remedy
    assert assign(corpus(["talk_7", "talk_7", "b"]), {}, 0, own, split_by="segment")["test"]


@pytest.mark.parametrize(
    ("groups", "sizes", "problem"),
    [
        ([], {"test": 1}, "no clips"),
        ([None] * 5, {"test": 3, "dev": 2}, "cannot be dealt into test 3, dev 2"),
        ([None] * 5, {"test": 6}, "5 clips cannot be dealt"),
        ([None] * 5, {"test": 0.05}, "test would be empty"),
        (["a"] * 5 + ["b"] * 6, {"dev": 4}, "smallest group left has 5"),
        (["a", "a", "b", "b"], {"test": 2, "dev": 1}, "dev would be empty"),
    ],
)
def test_sizes_beyond_the_data(groups: list[str | None], sizes: dict[str, float], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        assign(corpus(groups), sizes, 0)


@pytest.mark.parametrize("size", [0, -1, 1.0, 0.0, 1.5, True, "10", float("nan")])
def test_bad_sizes(size: Any) -> None:
    with pytest.raises(RecipeError, match="size of test"):
        assign(corpus([None] * 5), {"test": size}, 0)


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="no size for 'train'"):
        assign(corpus([None] * 5), {"train": 2}, 0)
    with pytest.raises(RecipeError, match="split_by"):
        assign(corpus([None] * 5), {}, 0, split_by="talk")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Two clips have the id 'a'"):
        assign([clip("a"), clip("b"), clip("a")], {"test": 1}, 0)


def test_a_small_corpus_is_dealt_by_tenths_with_a_note() -> None:
    """Three times the usual 100 of 400 would leave a quarter to train on."""
    notes: list[str] = []
    result = assign(corpus([None] * 400), {"select": 100, "dev": 100, "test": 100}, 0, notes=notes)
    assert {split: len(part) for split, part in result.items()} == {"train": 280, "select": 40, "dev": 40, "test": 40}
    assert "400 clips are too few for test 100, dev 100, select 100" in notes[0]
    result = assign(corpus([None] * 20), {"select": 100, "dev": 100, "test": 100}, 0)
    assert {split: len(part) for split, part in result.items()} == {"train": 14, "select": 2, "dev": 2, "test": 2}
    speakers = corpus([f"speaker {i // 6}" for i in range(30)])
    result = assign(speakers, {"select": 100, "dev": 100, "test": 100}, 0)
    assert {split: len(part) for split, part in result.items()} == {"train": 12, "select": 6, "dev": 6, "test": 6}


def test_sizes_that_someone_chose_are_kept_with_a_note() -> None:
    notes: list[str] = []
    result = assign(corpus([None] * 40), {"select": 10, "test": 25}, 0, notes=notes)
    assert {split: len(part) for split, part in result.items()} == {"train": 5, "select": 10, "test": 25}
    assert notes == ["only 5 of 40 clips are left to train on"]
    notes.clear()
    assert len(assign(corpus([None] * 1000), {"select": 100, "dev": 100, "test": 100}, 0, notes=notes)["train"]) == 700
    assert notes == []


def test_nothing_is_drawn_from_clips_that_the_user_named() -> None:
    clips = corpus([None] * 270)
    own: dict[str, Split] = {one.id: "train" if i < 240 else "dev" for i, one in enumerate(clips)}
    result = assign(clips, {"select": 100, "dev": 100, "test": 100}, 0, own, fixed=True)
    assert {split: len(part) for split, part in result.items()} == {"train": 240, "dev": 30}
    more = [*clips, *(clip(f"d{i:03}") for i in range(50))]  # which nobody named
    notes: list[str] = []
    result = assign(more, {"select": 100, "dev": 100, "test": 100}, 0, own, fixed=True, notes=notes)
    assert {split: len(part) for split, part in result.items()} == {"train": 240, "select": 25, "dev": 30, "test": 25}
    assert all(one.id.startswith("d") for split in ("select", "test") for one in result[split])
    assert "50 clips are too few" in notes[0]
    published = assign(clips, {"select": 100}, 0, own)
    assert {split: len(part) for split, part in published.items()} == {"train": 140, "select": 100, "dev": 30}


def test_clips_that_nobody_named_stay_with_their_group() -> None:
    clips = corpus(["a", "a", "a", "b", "c"])
    own: dict[str, Split] = {"c000": "train"}
    result = assign(clips, {"test": 2}, 0, own, fixed=True)
    assert ids(result) == {"train": ["c000", "c001", "c002"], "test": ["c003", "c004"]}


def test_all_groups_in_two_splits_are_named() -> None:
    groups = [f"talk_{i // 2}" for i in range(40)]
    own: dict[str, Split] = {f"c{i:03}": "test" if i % 2 else "train" for i in range(40)}
    with pytest.raises(DataError) as caught:
        check_groups(corpus(groups), own)
    assert all(f"Group 'talk_{i}' stands in train" in caught.value.problem for i in range(10))
    assert "So do 10 more groups." in caught.value.problem


def test_recordings_that_do_not_fit_are_dealt_by_clip_where_nobody_named_them() -> None:
    """Three talks of ten clips, and splits of five."""
    talks = corpus([f"talk{i // 10}.flac" for i in range(30)])
    sizes = {"select": 5, "dev": 5, "test": 5}
    with pytest.raises(DataError, match="smallest group left has 10"):
        assign(talks, sizes, 0)
    notes: list[str] = []
    result = assign(talks, sizes, 0, guessed=True, notes=notes)
    assert {split: len(part) for split, part in result.items()} == {"train": 15, "select": 5, "dev": 5, "test": 5}
    assert "clips are dealt one by one, which leaks" in notes[0]
    notes.clear()
    whole = assign(talks, {"test": 10}, 0, guessed=True, notes=notes)
    assert len({one.group for one in whole["test"]}) == 1
    assert notes == []
