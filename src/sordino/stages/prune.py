"""prune: drop the layers the ranking names and write a checkpoint that stock transformers loads.

The model is not loaded: what is left of it is copied from file to file.
"""

from __future__ import annotations

from sordino.config import chain
from sordino.config.run_layout import KEPT, PRUNED, RANKING
from sordino.config.schema import PruneSection
from sordino.pipeline.stage import Job, Stage
from sordino.pruning.ranking import Ranking
from sordino.runtime import files
from sordino.runtime.progress import note


def run(job: Job, section: PruneSection) -> None:
    from sordino.pruning import removal

    removed = Ranking.read(job.layout.ranking).removal_order(section.remove)
    source = job.model(chain.ranked_model(job.recipe))
    kept = removal.write_without(source.path, source.revision, removed, job.out)
    job.describe(job.out)
    files.write_json(job.out / KEPT, kept)
    job.record["removed"] = [str(layer) for layer in removed]
    note(f"  {len(kept['decoder'])} decoder and {len(kept['encoder'])} encoder layers are left")


STAGE = Stage(
    name="prune",
    directory=PRUNED,
    section=lambda recipe: recipe.prune,
    parents=lambda recipe: [chain.directory_of(chain.ranked_model(recipe)), RANKING],
    run=run,
    uses=("source", "target", "prompt"),
)
