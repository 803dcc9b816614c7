"""What the page advises: which system to take, what the scores do not say, what to try next."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from sordino.cli import COMMANDS
from sordino.cli.command import Parser
from sordino.config import parsing
from sordino.config.schema import Recipe
from sordino.metrics.base import Score
from sordino.metrics.paired import Paired
from sordino.report import advice
from sordino.report.model import Report, System, Training
from sordino.report.page import render
from tests.report import made_up

SURE, NOISE = Paired(0.001, 0.001, "s"), Paired(0.4, 0.3, "s")


def scored(name: str, megabytes: int, chrf: float, width: float = 2.0) -> System:
    made = made_up.system(name, name, 24, megabytes=megabytes, parameters=10, chrf=chrf, rtf=0.2)
    score = Score("chrf", chrf, "s", (chrf - width, chrf + width) if width else None, None)
    return dataclasses.replace(made, scores={"chrf": score})


def test_the_smallest_of_those_in_the_best_ones_interval_is_recommended() -> None:
    systems = [scored("teacher", 100, 66.0), scored("nf4", 30, 64.5), scored("mixed", 20, 63.0)]
    assert advice.recommended(systems) is systems[1]
    assert advice.recommended([scored("teacher", 100, 66.0, 0), scored("nf4", 30, 65.9, 0)]).name == "teacher"  # type: ignore[union-attr]
    assert advice.recommended([System("x", "x")]) is None


def test_without_chrf_another_metric_decides() -> None:
    systems = [
        dataclasses.replace(s, scores={"bleu": s.scores["chrf"]}) for s in (scored("a", 9, 40), scored("b", 3, 39))
    ]
    assert advice.main_metric(systems) == "bleu"
    assert advice.recommended(systems) is systems[1]


def test_the_sentence_says_layers_bytes_and_score() -> None:
    report = made_up.report()
    assert advice.summary(report) == (
        "Nf4 export keeps 24 of 32 decoder layers and 32 % of the teacher's bytes (5,410 of 16,794 MB) and 99 % of its "
        "chrF (65.60 against 66.40 on 4 clips)."
    )
    assert advice.summary(dataclasses.replace(report, systems=(System("x", "x"),))) == ""


@pytest.mark.parametrize(("test", "verdict"), [(SURE, "beyond chance"), (NOISE, "within the noise")])
def test_the_sentence_says_whether_it_is_noise(test: Paired, verdict: str) -> None:
    report = made_up.report()
    systems = tuple(dataclasses.replace(s, significance={"chrf": test}) for s in report.systems)
    assert verdict in advice.summary(dataclasses.replace(report, systems=systems))


def test_scores_at_the_floor_are_said_and_nothing_is_to_be_used() -> None:
    report = made_up.report()
    assert advice.at_floor(report.systems) is None
    poor = tuple(
        dataclasses.replace(s, scores={"bleu": made_up.score("bleu", 0.22), "chrf": made_up.score("chrf", 9.1)})
        for s in report.systems
    )
    changed = dataclasses.replace(report, systems=poor)
    assert "at the floor: the best BLEU" in advice.cautions(changed)[0]
    page = render(changed)
    assert "sordino translate" not in page and "First get a model that translates" in page


def test_what_cannot_be_told_from_the_teacher_is_named() -> None:
    report = made_up.report()
    (few, noise) = advice.cautions(report)
    assert few.startswith("Only 4 clips")
    assert noise == (
        "Not told apart from the teacher by chrF on these clips: healed student, QLoRA adapter, merged, nf4 export."
    )
    sure = tuple(dataclasses.replace(s, significance={"chrf": SURE}) for s in report.systems)
    assert len(advice.cautions(dataclasses.replace(report, systems=sure))) == 1


def test_next_steps_follow_from_the_run() -> None:
    report = made_up.report()
    steps = dict(advice.next_steps(report))
    assert steps == {}  # 98.8 % of the teacher's score, exported, trained well: nothing presses
    kept = tuple(dataclasses.replace(s, retention={"chrf": 99.5}) for s in report.systems)
    commands = [command for _, command in advice.next_steps(dataclasses.replace(report, systems=kept))]
    removed = sum(trial.removed for trial in report.trials)
    assert commands == [
        f"sordino plan runs/q7/90-report/recipe.yaml rank.remove={removed + 2}",
        "sordino sweep runs/q7/90-report/recipe.yaml",
    ]
    bad = tuple(dataclasses.replace(s, retention={"chrf": 80.0}) for s in report.systems if s.name != "nf4")
    texts = [text for text, _ in advice.next_steps(dataclasses.replace(report, systems=bad))]
    assert texts[0].startswith("The healed student keeps 80 %") and texts[1].startswith("Store it in 4 bits")
    rising = Training("teacher", ((1, 1.0), (2, 0.5)), ((1, 0.4), (2, 0.6)))
    assert "rises at the end" in advice.next_steps(dataclasses.replace(report, trainings=(rising,)))[0][0]
    worse = tuple(
        made_up.system(n, n, 3, megabytes=9, parameters=9, chrf=c, rtf=1) for n, c in (("base", 19), ("teacher", 18))
    )
    assert "no better than the base" in advice.next_steps(dataclasses.replace(report, systems=worse))[0][0]
    assert advice.next_steps(dataclasses.replace(report, recipe="")) == []


def commands_on(page: str) -> list[list[str]]:
    """Words of the commands in the page's boxes."""
    return [shlex.split(text.replace("&#39;", "'")) for text in re.findall(r"<pre[^>]*><code>([^<]+)", page)]


def test_commands_quote_what_a_shell_would_split() -> None:
    report = dataclasses.replace(made_up.report(), directory="my runs/q7")
    chosen = dataclasses.replace(report.systems[-1], path="my runs/q7/70-export/nf4")
    page = render(dataclasses.replace(report, systems=(*report.systems[:-1], chosen)))
    commands = commands_on(page)
    assert [words[:3] for words in commands] == [
        ["sordino", "translate", "my runs/q7/70-export/nf4"],
        ["sordino", "serve", "my runs/q7/70-export/nf4"],
        ["sordino", "serve", "my runs/q7"],
        ["sordino", "submit", "my runs/q7/70-export/nf4"],
        ["sordino", "publish", "my runs/q7/70-export/nf4"],
    ]


def test_the_command_line_takes_every_command() -> None:
    report = made_up.report()
    kept = tuple(dataclasses.replace(s, retention={"chrf": 99.5}) for s in report.systems)
    pages = [dataclasses.replace(report, systems=kept), dataclasses.replace(report, systems=kept[:1])]
    names = set()
    for words in (words for page in pages for words in commands_on(render(page))):
        assert words[0] == "sordino"
        Parser(words[1], COMMANDS[words[1]]).parse(words[2:])  # raises for what it does not take
        names.add(words[1])
    assert names == {"translate", "serve", "submit", "publish", "plan", "sweep", "run"}


def test_overrides_of_next_steps_are_settings() -> None:
    """Each is taken by the recipe's own parser."""
    report = made_up.report()
    kept = tuple(dataclasses.replace(s, retention={"chrf": 99.5}) for s in report.systems if s.name != "nf4")
    found = [
        words for words in commands_on(render(dataclasses.replace(report, systems=kept))) if words[2].endswith(".yaml")
    ]
    assert len(found) == 3
    for words in found:
        problems: list[str] = []
        raw: dict[str, object] = {"rank": {}, "export": False}
        for override in words[3:]:
            parsing.override(Recipe, raw, override, problems)
        parsing.section(Recipe, raw, "", problems)
        assert problems == []


def test_a_point_of_a_sweep_says_how_it_is_made() -> None:
    point = System("p", "healed, mixed 20 %", settings=("export.of=student", "export.formats=[mixed]"))
    report = Report("Sweep", {}, (point,), (), (), (), "chrf", recipe="r.yaml")
    assert advice.commands(point, report) == [
        ("make it", "sordino export r.yaml export.of=student 'export.formats=[mixed]'")
    ]
    assert advice.commands(dataclasses.replace(point, settings=("prune.remove=3",)), report) == []


def test_a_report_of_an_old_kind_has_no_advice() -> None:
    bare = Report("Bare", {}, (System("base", "base model"),), (), (), (), "chrf")
    assert (advice.summary(bare), advice.cautions(bare), advice.next_steps(bare)) == ("", [], [])


def test_a_terminal_ends_with_what_the_page_begins_with() -> None:
    systems = made_up.report().systems
    assert advice.last_lines(systems) == [
        "the smallest that is as good as the best: nf4 export (5,410 MB, chrF 65.60)",
        "sordino translate runs/q7/nf4 recording.wav",
    ]
    assert advice.last_lines(systems[:1])[1] == "sordino translate Qwen/Qwen2-Audio-7B recording.wav --to LANGUAGE"
    assert advice.last_lines([System("x", "x")]) == []
    (floor,) = advice.last_lines([dataclasses.replace(systems[-1], scores={"bleu": made_up.score("bleu", 0.3)})])
    assert floor.startswith("The scores are at the floor")
