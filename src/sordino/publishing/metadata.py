"""The YAML in front of a model card, as the Hugging Face Hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sordino.languages import language_code
from sordino.publishing import licences, snippets
from sordino.publishing.facts import SIXTEEN_BIT, Facts
from sordino.report.rows import metric_label

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PIPELINE = "audio-text-to-text"
# our metrics, as the Hub calls them
HUB_METRICS = {"bleu": "bleu", "chrf": "chrf", "chrf++": "chrf", "comet": "comet"}
METHOD_TAGS = {
    "prune": "layer-pruning",
    "distil": "knowledge-distillation",
    "qlora": "qlora",
    "trim": "vocabulary-trimming",
    "qat": "quantization-aware-training",
}
FORMAT_TAGS = {
    "nf4": ("bitsandbytes", "4-bit"),
    "w4a16": ("compressed-tensors", "4-bit", "vllm"),
    "mixed": ("compressed-tensors", "mixed-precision"),
    "gguf": ("gguf", "llama.cpp"),
}


def front_matter(facts: Facts) -> str:
    """base_model names only what is on the Hub, which refuses any other name."""
    from huggingface_hub import ModelCardData

    form, base, evaluation = facts.asked.form, facts.base_on_the_hub, facts.scored
    licence = facts.statement.licence or facts.base_licence
    codes = dict.fromkeys(language_code(name) for name in (facts.source, facts.target) if name)
    results = _results(facts)
    data = ModelCardData(
        base_model=base,
        base_model_relation=("finetune" if form == SIXTEEN_BIT else "quantized") if base else None,
        language=[code for code in codes if len(code) in (2, 3)] or None,
        license=licence or licences.UNKNOWN,
        license_name=None if licence else "see-model-card",
        library_name="transformers" if form in snippets.PACKAGES else "sordino",
        pipeline_tag=PIPELINE,
        tags=_tags(facts),
        datasets=[licences.ON_THE_HUB[d.name] for d in facts.corpora if d.name in licences.ON_THE_HUB] or None,
        metrics=list(dict.fromkeys(map(_hub_metric, evaluation.own.scores))) if evaluation else None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _hub_metric(key: str) -> str:
    """'comet:/models/x' -> 'comet'."""
    name = key.partition(":")[0]
    return HUB_METRICS.get(name, name)


def _tags(facts: Facts) -> list[str]:
    stages = {stage["stage"] for stage in facts.history.stages} if facts.history else set()
    method = [tag for stage, tag in METHOD_TAGS.items() if stage in stages]
    form = facts.asked.form
    return [
        "sordino",
        "speech-translation",
        *method,
        *FORMAT_TAGS.get(form, FORMAT_TAGS.get(form.partition("-")[0], ())),
    ]


def _results(facts: Facts) -> list[EvalResult]:
    """The model's scores on the run's own corpus."""
    from huggingface_hub import EvalResult

    evaluation = facts.scored
    if evaluation is None or not facts.corpora:
        return []
    corpus = facts.corpora[0]
    name = corpus.name if corpus.name in licences.CORPORA else Path(corpus.path).name
    return [
        EvalResult(
            task_type="translation",
            task_name="Speech translation",
            dataset_type=licences.ON_THE_HUB.get(corpus.name, name),
            dataset_name=name,
            dataset_split=evaluation.split,
            metric_type=_hub_metric(key),
            metric_name=metric_label(key),
            metric_value=round(score.value, 4),
            metric_args={"signature": score.signature, **_interval(score.interval)},
        )
        for key, score in evaluation.own.scores.items()
    ]


def _interval(interval: tuple[float, float] | None) -> dict[str, Any]:
    return {"interval_95": [round(bound, 4) for bound in interval]} if interval else {}
