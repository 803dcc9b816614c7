"""Model cards: README.md as the Hugging Face Hub renders it, from a model's files and the records of its run.

An export gets its card before it is scored; `sordino card` and `sordino publish` write the whole one, with the scores.
The same model and records give the same bytes, and nothing of the machine, such as a path, is in them.
"""

from __future__ import annotations

from sordino.publishing import snippets, techniques
from sordino.publishing.facts import Facts
from sordino.publishing.metadata import front_matter
from sordino.report.model import TEACHER
from sordino.report.rows import MARK, megabytes, metric_keys, metric_label, rows

README = "README.md"
METHOD = "https://aclanthology.org/2025.iwslt-1.40"


def render(facts: Facts) -> str:
    """The whole card."""
    parts = (
        front_matter(facts),
        f"# {facts.title}",
        _summary(facts),
        f"## Use\n\n{snippets.sections(facts.asked)}",
        f"The prompt that it was trained with, audio where the placeholder is:\n\n```text\n{facts.asked.rendered}\n```",
        f"## What was done\n\n{_done(facts)}",
        f"## Scores\n\n{_scores(facts)}",
        f"## Size\n\n{_size(facts)}",
        f"## Data\n\n{_data(facts)}",
        f"## Intended use and limits\n\n{_limits(facts)}",
        f"## Licence\n\n{_licence(facts)}",
    )
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _summary(facts: Facts) -> str:
    """What it is, how large and how good."""
    size = facts.size
    task = " for translating {} speech into {}".format(*facts.pair) if facts.pair else ""
    parameters = f"{size.parameters / 1e6:,.1f} million parameters, " if size.parameters else ""
    stored = f"{parameters}{megabytes(size.weights_bytes)} MB of weights (`{facts.asked.form}`)"
    base = f"`{facts.base}`" if facts.base else "An audio language model"
    return f"{base} made small with sordino{task}: {stored}.{_best_score(facts)}"


def _best_score(facts: Facts) -> str:
    evaluation = facts.scored
    if evaluation is None:
        return ""
    own, row = evaluation.own, rows(evaluation.systems)[-1]
    key = next((name for name in ("chrf", *metric_keys([own])) if name in own.scores), None)
    if key is None:
        return ""
    value, interval = row.scores[key]
    bounds = f" ({interval})" if interval else ""
    kept = f", {own.retention[key]:.1f} % of the teacher's" if key in own.retention and own.name != TEACHER else ""
    return f" {metric_label(key)} on its {evaluation.split} split: {value.rstrip(MARK)}{bounds}{kept}."


def _done(facts: Facts) -> str:
    history = facts.history
    if history is None:
        return "The model is of no run of sordino's: how it was made is not recorded."
    numbered = enumerate(techniques.sentences(history, facts.asked.form), start=1)
    lines = [*techniques.bases(history), "", *(f"{number}. {sentence}" for number, sentence in numbered), ""]
    versions = next((stage["versions"] for stage in reversed(history.stages) if "versions" in stage), None)
    if versions:
        lines.append(f"Made with {', '.join(f'{name} {version}' for name, version in versions.items())}.")
    lines.append(f"The method is that of [Moslem (2025)]({METHOD}). The recipe, without what is a default:")
    return "\n".join([*lines, "", "```yaml", techniques.recipe(history).rstrip(), "```"])


def _scores(facts: Facts) -> str:
    evaluation = facts.scored
    if evaluation is None:
        return f"None in this card: {facts.evaluation}"
    systems, own = evaluation.systems, evaluation.own
    keys = [key for key in metric_keys(systems) if any(key in system.scores for system in systems)]
    header = ["system", "decoder layers", "MB", *map(metric_label, keys), "RTF"]
    lines = [f"{evaluation.clips} clips of the {evaluation.split} split, greedy decoding; in brackets 95 % intervals."]
    lines += ["", f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    table = rows(systems)
    for row in table:
        scores = (f"{value} ({bounds})" if bounds else value for value, bounds in (row.scores[key] for key in keys))
        label = "**this model**" if row is table[-1] else row.label
        lines.append(f"| {' | '.join([label, row.layers, row.megabytes, *scores, row.rtf])} |")
    lines += ["", f"RTF: seconds of processing for a second of speech, in batches, on {evaluation.device}."]
    if any(MARK in value for row in table for value, _ in row.scores.values()):
        lines[-1] += f" {MARK} differs from the teacher by both paired tests at the 5 % level."
    signatures = (f"- {metric_label(key)}: `{own.scores[key].signature}`" for key in keys if key in own.scores)
    return "\n".join([*lines, "", *signatures])


def _size(facts: Facts) -> str:
    size = facts.size
    counts = {
        "parameters of the network": size.parameters,
        "bytes of weights": size.weights_bytes,
        "bytes of `torch.save(state_dict)`": size.torch_save_bytes,
        **{f"bytes as {kind}": share.bytes for kind, share in size.storage.items()},
    }
    lines = [f"| {what} | {'not known' if count is None else f'{count:,}'} |" for what, count in counts.items()]
    note = "The Hub counts stored elements and prints them as parameters: of 4-bit weights two are one."
    return "\n".join(["| what | |", "|---|---:|", *lines, "", note])


def _data(facts: Facts) -> str:
    if not facts.corpora:
        return "Not recorded."
    lines = [f"- {techniques.corpus(data)}. Licence: {facts.data_licence(data.name)}." for data in facts.corpora]
    return "\n".join([*lines, "", "The base model's own training data is its makers'."])


def _limits(facts: Facts) -> str:
    task = "translating {} speech into {} text".format(*facts.pair) if facts.pair else "translating speech"
    lines = [
        f"- For {task}, of the kind that it was trained on. Other domains, accents, noise and languages were not "
        "measured.",
        "- Layers and bits were chosen for this task: what else the base model could do may be lost.",
        f"- It takes at most {facts.asked.window:g} s of audio at once. Stock processors cut what is longer without a "
        "word; sordino segments it.",
        "- It can leave out or make up content fluently. Have a person check what matters.",
    ]
    health = facts.scored.own.health if facts.scored else None
    if facts.scored and health and health.total:
        counts = ", ".join(f"{number} {rule}" for rule, number in health.counts.items() if number)
        lines.append(f"- Faulty outputs on the {facts.scored.split} split: {counts}, of {health.segments}.")
    if any(stage.get("leaking_split") for stage in (facts.history.stages if facts.history else ())):
        lines.append("- The split leaks: clips of one talk stand on both sides, so that the scores are too high.")
    return "\n".join(lines)


def _licence(facts: Facts) -> str:
    stated = facts.statement.licence
    data = dict.fromkeys(facts.data_licence(corpus.name) for corpus in facts.corpora)
    lines = [f"- this model: {stated}, as its publisher states"] if stated else []
    lines.append(f"- base model: {facts.base_licence or 'not recorded; its own card says'}")
    lines.append(f"- training data: {', '.join(data) or 'not recorded'}")
    return "\n".join([*lines, "", "A model that is made from both may be bound by both."])
