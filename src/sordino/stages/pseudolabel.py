"""pseudolabel: the teacher translates the training audio (sequence-level knowledge distillation, Kim & Rush 2016).

Empty translations are dropped and counted. Finished batches are kept over a kill; the batches are always the same, so
a resumed stage writes the same file.
"""

from __future__ import annotations

import dataclasses

from sordino import artifact
from sordino.data import manifest
from sordino.data.clip import TEACHER_PREFIX
from sordino.decoding import Decoding, batches, translate
from sordino.features import Features
from sordino.progress import bar, note
from sordino.stages.job import DATA, PSEUDO, Job, Stage


def run(job: Job) -> None:
    section = job.recipe.pseudolabel
    assert section
    speech = job.load("teacher")
    clips = manifest.read(job.run_dir / DATA / "train.jsonl")
    heard = Features(speech, job.cache).hear_all(clips, job.prompt(speech))
    progress = job.state / "pseudo.jsonl"
    texts = {row["id"]: row["text"] for row in artifact.read_jsonl(progress)}
    with bar("the teacher translates", len(clips), len(texts)) as advance:
        for batch in batches(heard, section.batch_size):
            part = [heard[i] for i in batch]
            if all(h.clip.id in texts for h in part):
                continue
            for found in translate(speech, part, Decoding(section.batch_size, section.max_new_tokens)):
                if found.id not in texts:
                    artifact.append_jsonl(progress, {"id": found.id, "text": found.text})
                    texts[found.id] = found.text
                    advance(1)
    done = artifact.read_stage(job.run_dir / "20-teacher")
    assert done
    origin = TEACHER_PREFIX + done["hash"][:16]
    labelled = [dataclasses.replace(c, target_text=texts[c.id], origin=origin) for c in clips if texts[c.id]]
    manifest.write(job.out / "train.jsonl", labelled)
    same = sum(c.target_text == texts[c.id] for c in clips)
    job.record |= {"clips": len(clips), "empty": len(clips) - len(labelled), "same_as_reference": same}
    note(f"  {len(labelled)} pairs, {len(clips) - len(labelled)} empty dropped, {same} equal to the reference")


STAGE = Stage(
    name="pseudolabel",
    directory=PSEUDO,
    section=lambda recipe: recipe.pseudolabel,
    parents=lambda _: ["20-teacher", DATA],
    run=run,
    uses=("source", "target", "prompt", "dtype", "attention"),
)
