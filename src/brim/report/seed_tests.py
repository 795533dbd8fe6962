"""Is a method better than its competitors? Paired tests over the seeds that two systems share.

Where there is one seed, over its sentences, as `brim compare` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from brim.compare import MetricComparison, compare_runs
from brim.compare.measures import other_samples
from brim.errors import RunError
from brim.metrics import PairedTest, detectable_difference, holm, paired_t_test
from brim.report.paper_numbers import ALPHA
from brim.report.systems import SystemRuns, TaskRuns, by_task, digits_of
from brim.support.tables import ABSENT, Cell, Table, interval_text, p_text

TestsByTask = Mapping[str, Sequence["SeedTest"]]  # by the label of the task
_NUM_TRIALS = 2000  # of a randomization test: there is one for each pair of systems


@dataclass(frozen=True, slots=True)
class SeedTest:
    """One system against another on one score.

    Attributes:
        system, against: labels.
        metric: key of the score.
        test: of `system` minus `against`, over shared seeds or the sentences of one.
        holm: the p-value corrected for all that `system` was tested against on this score; None
            where the test has none.
        better: whether the difference is in favor of `system`, whichever way is better.
        over: what the pairs are.
    """

    system: str
    against: str
    metric: str
    test: PairedTest
    holm: float | None
    better: bool
    over: Literal["seeds", "sentences"] = "seeds"

    @property
    def tie(self) -> bool:
        """Whether the two are equal to the digits that are shown."""
        return not round(self.test.difference, digits_of(self.metric))

    def significant(self, alpha: float) -> bool:
        """Return whether the uncorrected p-value is below alpha, as in the paper."""
        return self.test.p_value is not None and self.test.p_value < alpha

    def verdict(self, alpha: float) -> str:
        """Return better, worse, tie or not significant, for a table."""
        if self.test.p_value is None:
            return "too few seeds"
        if not self.significant(alpha):
            return "tie" if self.tie else "not significant"
        kept = self.holm is not None and self.holm < alpha
        word = "better" if self.better else "worse"
        return word if kept else f"{word}, not after Holm"


def seed_test(
    task: TaskRuns, system: SystemRuns, against: SystemRuns, metric: str, alpha: float = 0.05
) -> SeedTest | None:
    """Return one test, uncorrected, that says which difference it would see at level `alpha`.

    None where the two share no seed, were decoded differently, or are both LLMR; or the score is
    of texts that were sampled differently.
    """
    if system.decoding != against.decoding or _both_llmr(system, against):
        return None
    one, other = system.runs[0].results, against.runs[0].results
    if other_samples(one, other, metric):
        return None
    ours, theirs = system.by_seed(metric), against.by_seed(metric)
    seeds = [seed for seed in ours if seed in theirs]
    over: Literal["seeds", "sentences"] = "seeds"
    test = None
    if task.num_seeds == 1:
        over, test = "sentences", _sentence_test(task, system, against, metric, alpha)
    if test is None and seeds:
        values = [[by_seed[seed] for seed in seeds] for by_seed in (ours, theirs)]
        over, test = "seeds", paired_t_test(*values, alpha=alpha)
    if test is None:
        return None
    better = (test.difference > 0) == task.example(metric).higher_is_better
    better = better and test.difference != 0
    return SeedTest(system.label, against.label, metric, test, None, better, over)


def _both_llmr(*systems: SystemRuns) -> bool:
    return all(system.is_llmr or system.name.family == "llmr" for system in systems)


def _sentence_test(
    task: TaskRuns, system: SystemRuns, against: SystemRuns, metric: str, alpha: float
) -> PairedTest | None:
    """The test of two runs of one seed, with the p-value of approximate randomization."""
    seeds = {run.seed for run in (system.runs[0], against.runs[0])} - {None}
    found = _compared(system, against, task.cut).get(metric) if len(seeds) < 2 else None
    if found is None:
        return None
    n, detectable = found.a.num_examples, found.detectable
    if detectable is not None:  # it is that of the comparison's own level
        own = detectable_difference(1.0, n, alpha=1 - found.a.confidence)
        detectable *= detectable_difference(1.0, n, alpha=alpha) / own
    return PairedTest(
        num_pairs=n,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.randomization_p,
        effect_size=None,
        confidence=found.a.confidence,
        detectable=detectable,
    )


@lru_cache(maxsize=4096)  # systems are equal only if they are the same
def _compared(
    system: SystemRuns, against: SystemRuns, cut: int | None
) -> Mapping[str, MetricComparison]:
    """Nothing where the texts are not there, or are not of the same examples."""
    ours, theirs = system.runs[0], against.runs[0]
    try:
        return compare_runs(
            ours.directory,
            theirs.directory,
            split=ours.split,
            num_resamples=_NUM_TRIALS,
            num_sentences=0,
            cut=cut,
        ).metrics
    except RunError:
        return {}


def all_tests(task: TaskRuns, alpha: float = 0.05) -> list[SeedTest]:
    """Test each method of ours against each competitor on each score but the length.

    Holm's correction is over the competitors of one system on one score.
    """
    corrected: list[SeedTest] = []
    for system in task.systems:
        others = competitors(task, system)
        for metric in task.tested:
            tests = (seed_test(task, system, other, metric, alpha) for other in others)
            found = [test for test in tests if test]
            p_values = {i: t.test.p_value for i, t in enumerate(found)}
            known = {i: p for i, p in p_values.items() if p is not None}
            for i, adjusted in zip(known, holm(list(known.values())), strict=True):
                found[i] = replace(found[i], holm=adjusted)
            corrected += found
    return corrected


def competitors(task: TaskRuns, system: SystemRuns) -> list[SystemRuns]:
    """Return what a system is tested against: nothing if it is no method of ours."""
    stem = system.name.stem
    if system.name.family == "ppo":
        theirs = [s for s in task.systems if s.name.stem == "PPO with LLMR"]
        return [] if system in theirs else theirs
    if stem not in ("BRIM", "Anchored"):
        return []
    others = [s for s in task.systems if s.name.family in ("student", "divergence", "llmr")]
    brim = task.best_brim() if stem == "Anchored" else None
    return others if brim is None else [*others, brim]


def significance_tables(
    tasks: Sequence[TaskRuns], tests: TestsByTask, *, alpha: float, paper: bool = False
) -> list[Table]:
    """Return BRIM and `anchored`, as validation chooses them, against each; all other tests.

    Empty where nothing was tested.
    """
    main: list[tuple[TaskRuns, SeedTest]] = []
    others: list[tuple[TaskRuns, SeedTest]] = []
    for task in tasks:
        chosen = {system.label for system in task.ours}
        shown = {*task.metrics[:1], *task.returns[:1]}
        for test in tests[task.label]:
            if test.test.p_value is not None:  # one pair is no test
                first = test.system in chosen and test.metric in shown
                (main if first else others).append((task, test))
    names = ("significance", "Paired tests"), ("significance_all", "All other paired tests")
    tables = [
        _table(name, title, tasks, found, alpha, paper=paper)
        for (name, title), found in zip(names, (main, others), strict=True)
    ]
    return [table for table in tables if table.rows]


def _table(
    name: str,
    title: str,
    tasks: Sequence[TaskRuns],
    tests: Sequence[tuple[TaskRuns, SeedTest]],
    alpha: float,
    *,
    paper: bool,
) -> Table:
    head = ["system", "against", "score", "difference", "could see", "p", "p, corrected"]
    head += ["effect size", "pairs", "verdict"]
    rows = []
    for task, found in tests:
        test = found.test
        digits = digits_of(found.metric)
        difference = interval_text(test.difference, test.low, test.high, spec=f"+z.{digits}f")
        seen = ABSENT if test.detectable is None else f"{test.detectable:.{digits}f}"
        pairs = f"{test.num_pairs:,}{' sentences' if found.over == 'sentences' else ''}"
        rows.append(
            (
                Cell(task.label),
                Cell(found.system),
                Cell(found.against),
                Cell(task.name_of(found.metric)),
                Cell(difference, significant=found.better and found.significant(alpha)),
                Cell(seen),
                Cell(p_text(test.p_value)),
                Cell(p_text(found.holm)),
                Cell(ABSENT if test.effect_size is None else f"{test.effect_size:+.2f}"),
                Cell(pairs),
                Cell(found.verdict(alpha)),
            )
        )
    theirs = f" (the paper: p < {ALPHA})" if paper else ""
    caption = (
        f"Paired two-sided t-tests over shared seeds, difference with its 95 % interval; * better "
        f"with p < {alpha:g}{theirs}. Could see: the true difference that "
        "such a test finds in 80 % of cases. Corrected, by Holm, for all competitors of one system "
        "on one score. Effect size: d_z, the mean difference over its standard deviation."
    )
    if any(found.over == "sentences" for _, found in tests):
        caption += (
            " Of one seed the pairs are sentences, p is of approximate randomization, and another "
            "seed may turn it."
        )
    data = [test_row(task.label, test, alpha) for task, test in tests]
    return Table(name, title, *by_task(tasks, head, rows), caption, data)


def test_row(task: str, found: SeedTest, alpha: float) -> dict[str, Any]:
    """Return a test as plain values."""
    test = found.test
    return {
        "task": task,
        "system": found.system,
        "against": found.against,
        "score": found.metric,
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "confidence": test.confidence,
        "p": test.p_value,
        "p_holm": found.holm,
        "d_z": test.effect_size,
        "num_pairs": test.num_pairs,
        "over": found.over,
        "detectable": test.detectable,
        "better": found.better,
        "verdict": found.verdict(alpha),
    }
