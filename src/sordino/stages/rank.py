"""rank: the order in which layers can go, found on the select split."""

from __future__ import annotations

from sordino.config import chain, records
from sordino.config.run_layout import DATA, RANKING, RANKING_FILE
from sordino.config.schema import RankSection
from sordino.pipeline import artifact
from sordino.pipeline.parents import parents_of
from sordino.pipeline.stage import Job, Stage
from sordino.pipeline.workers import on_cluster
from sordino.pruning.ranking import Ranking
from sordino.runtime import files
from sordino.runtime.progress import note

# whatever these say, what was tried so far counts
RESUMABLE = ("memory_mb", "remove", "polish")


def run(job: Job, section: RankSection) -> None:
    from sordino.pipeline import ranking as ranking_

    take_over(job)
    source = job.source(chain.ranked_model(job.recipe), own_masks=True)  # the common pool needs masks of its own
    if on_cluster(job.recipe) and section.method == "iterative":
        ranking = ranking_.rank_on_cluster(job, section, source)
    else:
        ranking = ranking_.rank_layers(job, section, source.open())
    files.write_json(job.out / RANKING_FILE, ranking.to_json())
    tell(ranking)


def take_over(job: Job) -> None:
    """Begin with the trials of a finished ranking that removes more or fewer layers: the greedy order is the same."""
    from sordino.pipeline.ranking import KNOWN

    directory, settings = job.layout.root / RANKING, STAGE.settings(job.recipe)
    done = records.read_stage(directory)
    if done is None or settings is None or (job.state / KNOWN).exists() or not job.layout.trials.is_file():
        return
    same = records.with_settings_of(settings, done, RESUMABLE)
    if artifact.why_stale(directory, same, parents_of(STAGE, job.recipe)) is None:
        files.write_text(job.state / KNOWN, job.layout.trials.read_text(encoding="utf-8"))


def tell(ranking: Ranking) -> None:
    for removal in ranking.removals:
        rival = f"; {removal.runner_up} in {removal.runner_up_probability:.0%}" if removal.runner_up else ""
        note(
            f"  {removal.layer} goes, {ranking.criterion} {removal.score:.2f}: "
            f"the best in {removal.probability:.0%} of resamples{rival}"
        )
    if ranking.searched:
        back = [layer for layer in ranking.searched if layer not in ranking.order]
        instead = [layer for layer in ranking.order if layer not in ranking.searched]
        note(f"  swapped after the search: {', '.join(map(str, instead))} for {', '.join(map(str, back))}")
    note("  removal order: " + " ".join(map(str, ranking.order)))


STAGE = Stage(
    name="rank",
    directory=RANKING,
    section=lambda recipe: recipe.rank,
    parents=lambda recipe: [chain.directory_of(chain.ranked_model(recipe)), DATA],
    run=run,
    uses=("source", "target", "prompt", "seed", "dtype", "attention", "encode_batch"),
    resumable=RESUMABLE,
    beside=True,
)
