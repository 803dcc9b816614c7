"""merge: fold the adapter into the 16-bit model it was trained on; merging into 4-bit weights would round twice."""

from __future__ import annotations

from pathlib import Path

from sordino.config import chain
from sordino.config.run_layout import ADAPTER, MERGED
from sordino.config.schema import MergeSection
from sordino.pipeline.stage import Job, Stage


def run(job: Job, _: MergeSection) -> None:
    from sordino.models import adapter_base, adapters
    from sordino.pipeline import fitting

    start, adapter = chain.start_of(job.recipe, chain.ADAPTER), Path(job.model(chain.ADAPTER).path)
    base = job.model(start)
    adapter_base.refuse_other(adapter, base.path, base.revision)
    # summed in float32, rounded to 16 bits once, when it is saved
    speech = job.load(start, dtype="float32")
    adapters.load(speech, adapter)
    adapters.merge(speech)
    fitting.save(job, speech)


STAGE = Stage(
    name="merge",
    directory=MERGED,
    section=lambda recipe: recipe.merge,
    parents=lambda recipe: [ADAPTER, chain.directory_of(chain.start_of(recipe, chain.ADAPTER))],
    run=run,
    uses=("source", "target", "prompt"),
)
