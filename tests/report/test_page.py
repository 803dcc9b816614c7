"""The page: everything is in it, nothing escapes it, nothing is loaded from elsewhere."""

import base64
import dataclasses
import hashlib
import html
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sordino.metrics.base import Score
from sordino.metrics.paired import Paired
from sordino.report.charts import NARROW, scatter
from sordino.report.heat_map import STEPS, cells, colour_range, heat_map
from sordino.report.model import Removal, Report, System, Trial
from sordino.report.page import outputs, render
from sordino.report.svg import ticks
from tests.report import made_up

VOID = {"meta", "br", "input"}


class Balance(HTMLParser):
    """Fails on tags that do not nest; collects addresses and scripts. An escaped tag is text and never seen."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page():
    return render(made_up.report())


def test_page_nests_and_loads_nothing(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.addresses == ["recipe.yaml", "scores.json", "data:audio/mpeg;base64,AAEC"]
    assert parser.seen.count("script") == 1 and "link" not in parser.seen
    assert not re.search(r"https?:|url\(|@import", page)


def test_the_policy_lets_no_script_run_but_the_pages_own(page):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(policy)
    assert policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in policy
    assert "<script>" not in render(dataclasses.replace(made_up.report(), clips=()))


def test_hypotheses_are_escaped(page):
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    hostile = '"><img src=x onerror=alert(1)>'
    report = made_up.report()
    systems = tuple(dataclasses.replace(s, label=hostile + s.name, path=hostile) for s in report.systems)
    clips = tuple(dataclasses.replace(clip, id=hostile, source=hostile, reference=hostile) for clip in report.clips)
    trainings = tuple(dataclasses.replace(training, label=hostile) for training in report.trainings)
    links = {hostile: hostile}
    trials = tuple(dataclasses.replace(trial, scope=hostile) for trial in report.trials if trial.scope == "decoder")
    changed = dataclasses.replace(
        report, systems=systems, trials=trials, title=hostile, facts={hostile: hostile}, notes=(hostile,), links=links
    )
    changed = dataclasses.replace(changed, clips=clips, trainings=trainings, recipe=hostile, lengths={hostile: 2})
    assert "<img" not in render(dataclasses.replace(changed, criterion=hostile))


def test_every_system_fact_note_sample_and_signature_is_there(page):
    report = made_up.report()
    wanted = [report.title, *report.notes, *report.facts, *report.facts.values(), made_up.SIGNATURE]
    wanted += [system.label for system in report.systems] + [sample.id for sample in report.samples]
    assert [text for text in wanted if text not in page] == []
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    assert re.findall(r'<span class="id">\d</span>([^<]+)', body) == [system.label for system in report.systems]
    row = body[body.index("nf4 export") :]
    for text in ("24", "6.778 B", "5,410", "32.2", "65.60", "63.5–67.5", "62.90", "98.8", "0.290", "6,310"):
        assert f">{text}<" in row
    assert ">12 repetition, 31 length<" in body


def test_a_report_with_nothing_measured_still_renders():
    page = render(Report("Bare", {}, (System("base", "base model"),), (), (), (), "chrf"))
    assert "base model" in page and "<svg" not in page and "Sample translations" not in page


def test_systems_that_say_the_same_share_a_line():
    report = made_up.report()
    labels = [said for said, _ in outputs(report.samples[0], report.systems)]
    assert labels[1] == ["pruned, not healed"]
    assert labels[0] == [system.label for system in report.systems if system.name != "pruned"]


TRIALS = (
    Trial(1, "decoder", 1, 10.0, False), Trial(1, "decoder", 2, 50.0, True), Trial(1, "decoder", 4, 40.0, False),
    Trial(2, "decoder", 1, 5.0, False), Trial(2, "decoder", 4, 30.0, True),
)  # fmt: skip


def test_heat_map_states_and_colours():
    found = {(cell.round, cell.layer): cell for cell in cells(TRIALS)}
    assert {place: cell.state for place, cell in found.items()} == {
        (1, 0): "kept", (1, 1): "tried", (1, 2): "removed", (1, 3): "kept", (1, 4): "tried",
        (2, 0): "kept", (2, 1): "tried", (2, 2): "gone", (2, 3): "kept", (2, 4): "removed",
    }  # fmt: skip
    assert found[1, 2].step == STEPS - 1
    assert found[2, 1].step == 0
    assert found[2, 1].step <= found[1, 1].step < found[2, 4].step < found[1, 4].step < found[1, 2].step
    assert colour_range([60.0] * 9 + [61.0, 1.0])[0] == 60.0  # one outlier does not flatten the rest


def test_heat_map_outlines_the_removed_layer_only():
    drawing = ElementTree.fromstring(str(heat_map(TRIALS, "decoder", "chrF")))
    titled = {
        rect.find("title").text: rect.get("class") for rect in drawing.iter("rect") if rect.find("title") is not None
    }
    assert {text for text, style in titled.items() if "removed" in style.split()} == {
        "round 1, layer 2: 50.00, removed",
        "round 2, layer 4: 30.00, removed",
    }
    assert len(titled) == len(TRIALS)
    assert "− layer 4: 30.00" in [text.text for text in drawing.iter("text")]
    assert str(heat_map(TRIALS, "encoder", "chrF")) == ""


def test_page_has_one_map_per_scope(page):
    assert "Which decoder layers" in page and "Which encoder layers" in page
    only = dataclasses.replace(made_up.report(), trials=TRIALS)
    assert "Which encoder layers" not in render(only)


def test_scatter_places_bytes_and_intervals():
    systems = made_up.report().systems
    drawing = ElementTree.fromstring(str(scatter(systems, "chrf", "chrF")))
    discs = [disc for disc in drawing.iter("circle") if disc.get("class") == "point"]
    assert len(discs) == len(systems) == sum(path.get("class") == "bar" for path in drawing.iter("path"))
    x, y = ([float(disc.get(key)) for disc in discs] for key in ("cx", "cy"))
    assert x[0] == x[1] > x[2] > x[6]  # base and teacher above each other, then pruned, then nf4
    assert x[3] != x[5]  # healed and merged would cover each other
    assert y[1] < y[0] < y[2]  # the better, the higher
    assert str(scatter(systems[:1], "chrf", "chrF")) == ""


def names(drawing):
    return [text.text for text in drawing.iter("text") if (text.get("class") or "").endswith("name")]


def test_names_stand_beside_their_points_and_cover_nothing():
    """Boxes as tall as a line and as wide as 0.5 em a letter, which is what most letters take."""
    systems = made_up.report().systems
    drawing = ElementTree.fromstring(str(scatter(systems, "chrf", "chrF")))
    assert sorted(names(drawing)) == sorted(system.label for system in systems)
    boxes = [(float(d.get("cx")) - 9, float(d.get("cx")) + 9, float(d.get("cy"))) for d in drawing.iter("circle")]
    for text in drawing.iter("text"):
        style = text.get("class") or ""
        if style.endswith("name"):
            x, wide = float(text.get("x")), 6 * len(text.text)
            left = x - wide if "end" in style else x - wide / 2 if "middle" in style else x
            boxes.append((left, left + wide, float(text.get("y")) - 4))
    for i, (left, right, y) in enumerate(boxes):
        assert not [b for b in boxes[:i] if left < b[1] and b[0] < right and abs(y - b[2]) < 10]


def test_the_frontier_goes_through_its_systems_and_the_knee_has_a_ring():
    report = dataclasses.replace(made_up.report(), frontier=("nf4", "merged", "teacher"), knee="merged")
    drawing = ElementTree.fromstring(str(scatter(report.systems, "chrf", "chrF", report.frontier, report.knee)))
    discs = {group.find("title").text.split(":")[0]: group.find("circle") for group in drawing.iter("g")}
    (ring,) = (circle for circle in drawing.iter("circle") if circle.get("class") == "knee")
    assert (ring.get("cx"), ring.get("cy")) == (discs["merged"].get("cx"), discs["merged"].get("cy"))
    (line,) = drawing.iter("polyline")
    corners = [tuple(corner.split(",")) for corner in line.get("points").split()]
    on_it = [discs[label] for label in ("nf4 export", "merged", "teacher")]
    assert corners == [(disc.get("cx"), disc.get("cy")) for disc in on_it]
    assert len(discs) == len(report.systems) and {d.get("class") for d in on_it} == {"point"}
    assert discs["healed student"].get("cx") == discs["merged"].get("cx")  # true places, even if they cover each other
    assert discs["healed student"].get("class") == "point beaten"
    assert sorted(names(drawing)) == ["merged", "nf4 export", "teacher"]
    narrow = str(scatter(report.systems, "chrf", "chrF", report.frontier, report.knee, NARROW))
    numbers = [t.text for t in ElementTree.fromstring(narrow).iter("text") if t.get("class") == "end axis"]
    assert numbers == ["7", "6", "2"]
    page = render(report)
    assert "the ring is its knee" in page and "the ring is its knee" not in render(made_up.report())


def test_ticks_are_round_and_cover():
    assert ticks(0, 16_794) == [0, 5000, 10_000, 15_000, 20_000]
    for value in (0.0, 60.0, 63.1):  # all systems score the same: the axis must still have a length
        assert ticks(value, value)[0] <= value <= ticks(value, value)[-1]
        assert len(ticks(value, value)) > 1


def test_tests_groups_and_cleaned_scores_are_shown():
    report = made_up.report()
    differs, same = Paired(0.0004, 0.012, "s"), Paired(0.3, 0.4, "s")
    systems = [
        dataclasses.replace(
            system,
            significance={} if system.name == "teacher" else {"chrf": differs if system.name == "pruned" else same},
            groups={"chrf": {"talk1": 60.5, "talk2": 40.25}},
            cleaned={"chrf": made_up.score("chrf", 70.0)},
            cleaned_counts={"preamble": 3, "quotes": 0},
        )
        for system in report.systems
    ]
    changed = dataclasses.replace(report, systems=tuple(systems), groups={"talk1": 9, "talk2": 4})
    page = render(changed)
    for text in (">38.20†<", ">65.10<", ">&lt; 0.001<", ">0.012<", ">talk1<", ">40.25<", ">3 preamble<"):
        assert text in page
    assert "38.20† → 70.00" in page or "38.20 → 70.00" in page
    assert page.count("<details>") == 5 == page.count("</details>")  # with lengths and bits
    report = dataclasses.replace(report, lengths={}, mixture=None)
    without = render(dataclasses.replace(report, no_groups="each of the 9 groups is a single clip"))
    assert "<details>" not in without and "each of the 9 groups is a single clip" in without and "†" not in without


def test_comet_has_four_digits():
    bare = System("x", "x", scores={"comet": Score("comet", 0.85126, "s", (0.8412, 0.8617), None)})
    page = render(Report("Bare", {}, (bare,), (), (), (), "chrf"))
    assert ">0.8513<" in page and ">0.841–0.862<" in page and ">COMET<" in page


def test_removals_say_how_sure_they_were() -> None:
    made = dataclasses.replace(
        made_up.report(), removals=(Removal("decoder.12", 100, 61.2, (58.0, 63.5), 0.44, "decoder.17", 0.31),)
    )
    page = render(made)
    assert "How sure each removal was" in page
    assert "decoder.12" in page and "44 %" in page and "decoder.17" in page and "31 %" in page
    assert "How sure" not in render(made_up.report())


def test_the_least_missed_layer_is_dark_where_less_is_better_too() -> None:
    losses = [Trial(1, "decoder", i, value, i == 0) for i, value in enumerate((0.1, 0.9, 0.5))]
    assert [cell.step for cell in cells(losses, lower_is_better=True)] == [
        cell.step for cell in cells([dataclasses.replace(t, score=-t.score) for t in losses])
    ]
    steps = [cell.step or 0 for cell in cells(losses, lower_is_better=True)]
    assert steps[0] > steps[2] > steps[1]
