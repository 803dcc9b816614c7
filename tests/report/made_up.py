"""A report of made-up values with every feature in it. Its shapes are those of the paper's systems, its scores are
invented."""

from sordino.measure.size import Size
from sordino.measure.speed import Speed
from sordino.metrics.base import Score
from sordino.metrics.health import Health
from sordino.report.model import Report, Sample, System, Trial

SIGNATURE = "nrefs:1|bs:1000|seed:0|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"
SOURCE = "We remove the layers that translation can spare, and heal the student on the teacher's own output."
GERMAN = "Wir entfernen die Schichten, die die Übersetzung entbehren kann, und heilen den Schüler."


def score(name: str, value: float) -> Score:
    return Score(name, value, SIGNATURE, (value - 2.1, value + 1.9), (value,))


def system(name: str, label: str, layers: int, *, megabytes: int, parameters: int, chrf: float, rtf: float) -> System:
    counts = {"empty": 0, "newline": 0, "repetition": 0, "preamble": 0, "script": 0, "length": 0}
    if name == "pruned":
        counts |= {"repetition": 12, "length": 31}
    return System(
        name=name,
        label=label,
        decoder_layers=layers,
        size=Size(megabytes * 10**6, megabytes * 10**6 + 11_000_000, parameters, parameters, {}, {}, ("m",)),
        scores={"bleu": score("bleu", chrf * 0.62), "chrf": score("chrf", chrf), "chrf++": score("chrf++", chrf - 2.7)},
        retention={"chrf": 100 * chrf / 66.4, "bleu": 98.0},
        speed=Speed(120.0, 120 / rtf, rtf, 9000, 75.0, megabytes * 10**6 + 900_000_000, "cuda:0"),
        health=Health(100, counts, dict.fromkeys(counts, ("talk1-004", "talk1-017"))),
    )


def trials() -> tuple[Trial, ...]:
    """Eight decoder rounds over layers 1 to 30, and two encoder rounds; layer 1 is indispensable."""
    found, gone = [], set[int]()
    for number in range(1, 9):
        scores = {}
        for layer in sorted(set(range(1, 31)) - gone):
            scores[layer] = 3.0 if layer == 1 else 64 - number - ((layer * 37 + number * 11) % 23) / 4
        best = max(scores, key=lambda layer: scores[layer])
        found += [Trial(number, "decoder", layer, value, layer == best) for layer, value in scores.items()]
        gone.add(best)
    for number in (1, 2):
        found += [
            Trial(number, "encoder", layer, 60 - number - layer, layer == number)
            for layer in range(1, 11)
            if layer >= number
        ]
    return tuple(found)


def report() -> Report:
    systems = (
        system("base", "base model", 32, megabytes=16794, parameters=8_397_094_912, chrf=49.7, rtf=0.21),
        system("teacher", "teacher", 32, megabytes=16794, parameters=8_397_094_912, chrf=66.4, rtf=0.21),
        system("pruned", "pruned, not healed", 24, megabytes=13556, parameters=6_777_929_728, chrf=38.2, rtf=0.16),
        system("student", "healed student", 24, megabytes=13556, parameters=6_777_929_728, chrf=65.1, rtf=0.16),
        system("adapter", "QLoRA adapter", 24, megabytes=5910, parameters=6_945_000_000, chrf=65.9, rtf=0.31),
        system("merged", "merged", 24, megabytes=13556, parameters=6_777_929_728, chrf=66.0, rtf=0.16),
        system("nf4", "nf4 export", 24, megabytes=5410, parameters=6_777_929_728, chrf=65.6, rtf=0.29),
    )
    texts = {each.name: GERMAN for each in systems}
    samples = [
        Sample(f"talk{index}-00{index}", SOURCE, GERMAN, texts | {"pruned": GERMAN[: 8 * index] + " die die die die"})
        for index in range(1, 7)
    ]
    samples.append(Sample("talk7-007", "", GERMAN, texts | {"pruned": "", "base": "<script>alert(1)</script>"}))
    zh = "我们移除翻译可以省去的层，并用教师自己的输出来修复学生模型。"
    samples.append(Sample("talk8-008", SOURCE, zh, dict.fromkeys(texts, zh) | {"pruned": "我们 我们 我们 我们"}))
    return Report(
        title="Qwen2-Audio-7B, English to German, 8 layers pruned",
        facts={
            "target language": "German", "split": "test (ACL 60/60 eval, by talk)", "clips": "416", "seed": "0",
            "versions": "sordino 0.1.0, torch 2.13.0, transformers 5.23.0", "machine": "x86_64, 16 cores",
            "device": "NVIDIA H100", "dtype": "bfloat16", "date": "2026-01-31",
        },
        systems=systems,
        trials=trials(),
        samples=tuple(samples),
        notes=("The split is by segment: the same talks are in train and test.", "The base model was never tuned."),
        criterion="chrf",
    )  # fmt: skip
