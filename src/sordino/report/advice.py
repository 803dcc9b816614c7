"""What a reader does with a report: which system to take, how sure the numbers are, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sordino.metrics.base import Score
from sordino.report.frontier import smallest_good
from sordino.report.model import TEACHER, Report, System, Training
from sordino.report.rows import RETENTION_METRIC, megabytes, metric_keys, metric_label, printed

BASE, STUDENT, EXPORT = "base", "student", "export"  # System.name, and System.section of exports
FLOOR = {"bleu": 2.0, "chrf": 10.0}  # below, a translation shares hardly more than its letters with the reference
FEW_CLIPS = 100  # below, intervals are several points wide
KEEPS = 99.0  # per cent of the teacher's score: nothing was lost
LOSES = 95.0  # per cent of the teacher's score: worth another try
OVERFITS = 1.05  # last dev loss, times the lowest


def main_metric(systems: Sequence[System]) -> str | None:
    """The metric that the page compares systems by: chrF, else the first that there is; None without scores."""
    keys = [key for key in metric_keys(systems) if any(key in system.scores for system in systems)]
    return RETENTION_METRIC if RETENTION_METRIC in keys else next(iter(keys), None)


def recommended(systems: Sequence[System]) -> System | None:
    """The one to use (`frontier.smallest_good`). None where nothing is both scored and weighed."""
    metric = main_metric(systems)
    weighed = [system for system in systems if metric in system.scores and system.size]
    if metric is None:
        return None
    scores = [system.scores[metric] for system in weighed]
    index = smallest_good(
        [(_bytes(system), score.value, score.interval) for system, score in zip(weighed, scores, strict=True)]
    )
    return None if index is None else weighed[index]


def _bytes(system: System) -> int:
    assert system.size
    return system.size.weights_bytes


def _named(systems: Sequence[System], name: str) -> System | None:
    return next((system for system in systems if system.name == name), None)


def summary(report: Report) -> str:
    """The run in one sentence for someone who did not make it; empty where nothing is scored and weighed."""
    system, metric = recommended(report.systems), main_metric(report.systems)
    if system is None or metric is None:
        return ""
    teacher = _named(report.systems, TEACHER)
    score = f"{metric_label(metric)} {printed(metric, system.scores[metric].value)}"
    clips = f" on {len(report.clips):,} clips" if report.clips else ""
    if teacher is None or teacher is system or teacher.size is None or metric not in teacher.scores:
        return f"{_start(system.label)} takes {megabytes(_bytes(system))} MB and has {score}{clips}."
    share = f"{100 * _bytes(system) / _bytes(teacher):.0f} % of the teacher's bytes"
    sizes = f"{megabytes(_bytes(system))} of {megabytes(_bytes(teacher))} MB"
    kept, of = system.decoder_layers, teacher.decoder_layers
    layers = f"{kept} of {of} decoder layers and " if kept is not None and of is not None and kept != of else ""
    retention = system.retention.get(metric)
    reached = f"{retention:.0f} % of its {metric_label(metric)}" if retention is not None else score
    of_teacher = printed(metric, teacher.scores[metric].value)
    scores = f"{printed(metric, system.scores[metric].value)} against {of_teacher}"
    return (
        f"{_start(system.label)} keeps {layers}{share} ({sizes}) and {reached} ({scores}{clips})"
        f"{_verdict(system, metric)}."
    )


def _start(label: str) -> str:
    return label[:1].upper() + label[1:]


def _verdict(system: System, metric: str) -> str:
    test = system.significance.get(metric)
    if test is None:
        return ""
    if not test.significant:
        return ", a difference within the noise"
    return ", a difference beyond chance by both paired tests"


def at_floor(systems: Sequence[System]) -> str | None:
    """Label of the metric by which even the best system does not translate; None where there is none."""
    for metric, floor in FLOOR.items():
        scores = [system.scores[metric].value for system in systems if metric in system.scores]
        if scores and max(scores) < floor:
            return metric_label(metric)
    return None


def cautions(report: Report) -> list[str]:
    """What the scores do not say: a floor, few clips, differences that are noise."""
    systems, lines = report.systems, []
    floor = at_floor(systems)
    if floor:
        lines.append(_floor_note(floor))
    metric = main_metric(systems)
    if metric is None:
        return lines
    if report.clips and len(report.clips) < FEW_CLIPS:
        lines.append(f"Only {len(report.clips)} clips were scored: differences of a few points are within the noise.")
    noise = [system.label for system in systems if within_noise(system, _named(systems, TEACHER), metric)]
    if noise and not floor:
        lines.append(f"Not told apart from the teacher by {metric_label(metric)} on these clips: {', '.join(noise)}.")
    return lines


def _floor_note(metric: str) -> str:
    return (
        f"The scores are at the floor: the best {metric} is that of texts which share little with the references. "
        "No model here translates, and retention says nothing."
    )


def last_lines(systems: Sequence[System]) -> list[str]:
    """What a terminal says last of a finished run: what the page says first."""
    floor, best = at_floor(systems), recommended(systems)
    if floor:
        return [_floor_note(floor)]
    if best is None or not best.path:
        return []
    metric = main_metric(systems)
    score = f"{metric_label(metric)} {printed(metric, best.scores[metric].value)}" if metric else ""
    words = f"sordino translate {shlex.quote(best.path)} recording.wav{_language(best)}"
    return [f"the smallest that is as good as the best: {best.label} ({megabytes(_bytes(best))} MB, {score})", words]


def _language(system: System) -> str:
    """The option that a command needs with a model that does not know its languages."""
    return " --to LANGUAGE" if system.name == BASE else ""


def within_noise(system: System, teacher: System | None, metric: str) -> bool:
    """Whether a system may be as good as the teacher: by the paired tests, or where there are none, by its interval."""
    if teacher is None or system.name == TEACHER or not {metric} <= system.scores.keys() & teacher.scores.keys():
        return False
    test = system.significance.get(metric)
    if test is not None:
        return not test.significant
    return _within(teacher.scores[metric].value, system.scores[metric])


def _within(value: float, score: Score) -> bool:
    return score.interval is not None and score.interval[0] <= value <= score.interval[1]


def commands(system: System, report: Report) -> list[tuple[str, str]]:
    """(what for, command) of a system of a report, on disk or an export that a sweep made and threw away."""
    recipe, run = report.recipe, report.directory
    if not system.path:
        exported = bool(recipe) and any(setting.startswith("export.") for setting in system.settings)
        words = ["sordino", "export", recipe, *system.settings]
        return [("make it", shlex.join(words))] if exported else []
    path, to = shlex.quote(system.path), _language(system)
    lines = [("translate a recording", f"sordino translate {path} recording.wav{to}")]
    lines.append(("serve it, with a page and a microphone", f"sordino serve {path}{to}"))
    if run and system.section == EXPORT and _named(report.systems, TEACHER):
        lines.append(("compare the smallest export with the teacher there", f"sordino serve {shlex.quote(run)}"))
    lines.append(("write an IWSLT submission", f"sordino submit {path} TESTSET --team TEAM{to}"))
    if system.section == EXPORT:
        lines.append(("publish it; this only lists the files", f"sordino publish {path} OWNER/NAME --dry-run"))
    return lines


def next_steps(report: Report) -> list[tuple[str, str]]:
    """(what to try and why, command or '') from what the run shows, the most pressing first. A sweep asks no more."""
    if not report.recipe or report.frontier:
        return []
    systems, recipe = report.systems, shlex.quote(report.recipe)
    metric = main_metric(systems)
    if metric is None:
        return []
    if at_floor(systems):
        return [("First get a model that translates: look at the losses and the clips below, give it more data.", "")]
    steps = [*_teaching(systems, metric), *_overfitting(report.trainings), *_healing(systems, metric)]
    if not any(system.section == EXPORT for system in systems):
        steps.append(
            ("Store it in 4 bits: about a quarter of the bytes.", f"sordino run {recipe} 'export={{formats: [nf4]}}'")
        )
    best = recommended(systems)
    if best and best.retention.get(metric, 0.0) >= KEEPS and best.name != TEACHER:
        steps += _room(report, recipe)
    return steps


def _teaching(systems: Sequence[System], metric: str) -> list[tuple[str, str]]:
    base, teacher = _named(systems, BASE), _named(systems, TEACHER)
    if base is None or teacher is None or not {metric} <= base.scores.keys() & teacher.scores.keys():
        return []
    if teacher.scores[metric].value > base.scores[metric].value:
        return []
    return [("The teacher is no better than the base model: more data, another learning rate, or no fine-tuning.", "")]


def _overfitting(trainings: Sequence[Training]) -> list[tuple[str, str]]:
    return [
        (f"The dev loss of {training.label} rises at the end: fewer epochs may do better.", "")
        for training in trainings
        if len(training.dev_losses) > 1
        and training.dev_losses[-1][1] > OVERFITS * min(loss for _, loss in training.dev_losses)
    ]


def _healing(systems: Sequence[System], metric: str) -> list[tuple[str, str]]:
    student = _named(systems, STUDENT)
    if student is None or student.retention.get(metric, 100.0) >= LOSES:
        return []
    kept = f"{student.retention[metric]:.0f} % of the teacher's score"
    return [(f"The healed student keeps {kept}: heal longer (distil.epochs) or remove fewer layers (rank.remove).", "")]


def _room(report: Report, recipe: str) -> list[tuple[str, str]]:
    """Where nothing was lost, more can go."""
    steps = []
    removed = len({trial.layer for trial in report.trials if trial.removed})
    if removed:
        more = f"sordino plan {recipe} rank.remove={removed + 2}"
        steps.append(("Nothing was lost: more layers may go. This says what would run again.", more))
    steps.append(("See bytes against quality for smaller forms of these models.", f"sordino sweep {recipe}"))
    return steps
