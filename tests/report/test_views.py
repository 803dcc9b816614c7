"""Rows and bars of the page: shares, orders, units; curves of losses."""

from __future__ import annotations

import dataclasses
import math
from xml.etree import ElementTree

import pytest

from sordino.report import advice, views
from sordino.report.curves import means
from sordino.report.model import Mixture, Split, StageCost, Training
from tests.report import made_up


def test_bytes_by_part_are_shares_of_the_largest_system() -> None:
    base, nf4 = made_up.report().systems[0], made_up.report().systems[-1]
    assert base.size and nf4.size
    small = dataclasses.replace(nf4, size=dataclasses.replace(nf4.size, bytes_by_part={"decoder": 10**9, "odd": 10**8}))
    first, second = views.part_bars([base, small])
    assert [(s.label, s.size, round(s.share, 2)) for s in first.segments] == [
        ("audio encoder", "1,200", 25.0), ("decoder", "3,000", 62.5), ("head", "600", 12.5),
    ]  # fmt: skip
    assert [round(s.share, 2) for s in second.segments] == [20.83, 2.08]
    assert views.part_legend([first, second])[-1] == ("odd", len(views.PARTS) - 1)
    assert second.value == "5,410"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (37.4, "37 s"),
        (59.6, "1 min 00 s"),
        (216.8, "3 min 37 s"),
        (7503.0, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert views.duration(seconds) == text


def test_costs_and_splits() -> None:
    long, short = views.cost_bars(
        [StageCost("finetune", 100.0, 7 * 10**9, "cuda:0"), StageCost("prune", 25.0, None, "cpu")]
    )
    assert (long.segments[0].share, short.segments[0].share) == (100, 25)
    assert (long.others, short.others) == (("7,000", "cuda:0"), ("–", "cpu"))
    train, test = views.split_rows(
        [Split("train", 3, (1.0, 2.0, 3600.0)), Split("test", 1, (2.0,)), Split("dev", 2, ())]
    )
    assert (train.clips, train.hours, train.shortest, train.median, train.longest) == (
        "3",
        "1.00",
        "1.0",
        "2.0",
        "3600.0",
    )
    heights = [float(r.get("height", 0)) for r in ElementTree.fromstring(str(train.drawing)).iter("rect")]
    assert heights == [24, 12]  # two in the first column, one in the last
    assert test.name == "test"


def test_clips_are_worst_first_with_what_the_teacher_got() -> None:
    report = made_up.report()
    rows = views.clip_rows(report, report.systems[-1], "chrf")
    assert [row.id for row in rows] == ["talk1-003", "talk1-002", "talk1-001", "talk1-000"]
    assert [(row.score, row.change) for row in rows][::3] == [("61.00", "-2.00"), ("70.00", "+10.00")]
    assert [who for who, _ in rows[0].texts] == ["source", "reference", "teacher", "nf4 export"]
    teacher = views.clip_rows(report, report.systems[1], "chrf")
    assert [who for who, _ in teacher[0].texts] == ["source", "reference", "teacher"] and teacher[0].change == "–"
    assert views.clip_rows(report, report.systems[0], "chrf") == []  # not scored clip by clip
    assert advice.recommended(report.systems) is report.systems[-1]


def test_bits_are_a_row_a_layer() -> None:
    bits = {"encoder.0": 8, "decoder.0.attention": 3, "decoder.0.mlp": 2, "decoder.1.attention": 16, "head": 4}
    columns, rows = views.bits_table(Mixture(10, 9, bits, ()))
    assert columns == ["all", "attention", "mlp"]
    assert rows == [
        ("encoder.0", ["8", "", ""]),
        ("decoder.0", ["", "3", "2"]),
        ("decoder.1", ["", "16", ""]),
        ("head", ["4", "", ""]),
    ]


def test_a_curve_is_means_of_stretches_of_steps() -> None:
    losses = [(step, float(step)) for step in range(1, 101)]
    assert means(losses, 10)[0] == (5.5, 5.5) and len(means(losses, 10)) == 10
    assert means(losses[:3], 10) == losses[:3]
    ((_, drawing, ended),) = views.curves([Training("teacher", tuple(losses), ((50, 40.0), (100, 60.0)))])
    root = ElementTree.fromstring(str(drawing))
    dots = [(float(d.get("cx", 0)), float(d.get("cy", 0))) for d in root.iter("circle")]
    assert dots[0][0] < dots[1][0] and dots[0][1] > dots[1][1]
    assert ended == "100 steps, dev loss 60.000 at the end"


def test_a_training_that_diverged_says_so() -> None:
    training = Training("teacher", ((1, 2.0), (2, math.nan), (3, 1.0)), ((3, math.inf),))
    ((_, drawing, ended),) = views.curves([training])
    assert (
        "nan" not in drawing and "inf" not in drawing and ended.startswith("3 steps, 1 of them without a finite loss")
    )
    ((_, drawing, _),) = views.curves([Training("teacher", ((1, math.nan),), ())])
    assert drawing == ""
