"""Is BRIM better than its competitors? Paired t-tests over the seeds that two systems share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brim.metrics import PairedTest, holm, paired_t_test
from brim.report import paper_numbers as paper
from brim.report.systems import SystemRuns, TaskRuns, by_task
from brim.support.tables import ABSENT, Cell, Table, interval_text, p_text

TestsByTask = Mapping[str, Sequence["SeedTest"]]  # by the label of the task


@dataclass(frozen=True, slots=True)
class SeedTest:
    """One system against another on one score.

    Attributes:
        system, against: labels.
        metric: key of the score.
        test: of `system` minus `against`, over shared seeds.
        holm: the p-value corrected for all that `system` was tested against on this score; None
            where the test has none.
        better: whether the difference is in favor of `system`, whichever way is better.
    """

    system: str
    against: str
    metric: str
    test: PairedTest
    holm: float | None
    better: bool

    def significant(self, alpha: float) -> bool:
        """Return whether the uncorrected p-value is below alpha, as in the paper."""
        return self.test.p_value is not None and self.test.p_value < alpha

    def verdict(self, alpha: float) -> str:
        """Return better, worse or not significant, for a table."""
        if self.test.p_value is None:
            return "too few seeds"
        if not self.significant(alpha):
            return "not significant"
        kept = self.holm is not None and self.holm < alpha
        word = "better" if self.better else "worse"
        return word if kept else f"{word}, not after Holm"


def seed_test(
    task: TaskRuns, system: SystemRuns, against: SystemRuns, metric: str
) -> SeedTest | None:
    """Return one test, uncorrected.

    None where the two share no seed or were decoded differently.
    """
    if system.decoding != against.decoding:
        return None
    ours, theirs = system.by_seed(metric), against.by_seed(metric)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    test = paired_t_test([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    better = (test.difference > 0) == task.example(metric).higher_is_better
    return SeedTest(system.label, against.label, metric, test, None, better)


def all_tests(task: TaskRuns) -> list[SeedTest]:
    """Test each BRIM against each competitor on each score but the length; and PPO's two kinds.

    Holm's correction is over the competitors of one system on one score.
    """
    corrected: list[SeedTest] = []
    for system in task.systems:
        others = competitors(task, system)
        for metric in (*task.metrics, *task.returns):
            found = [test for other in others if (test := seed_test(task, system, other, metric))]
            p_values = {i: t.test.p_value for i, t in enumerate(found)}
            known = {i: p for i, p in p_values.items() if p is not None}
            for i, adjusted in zip(known, holm(list(known.values())), strict=True):
                found[i] = replace(found[i], holm=adjusted)
            corrected += found
    return corrected


def competitors(task: TaskRuns, system: SystemRuns) -> list[SystemRuns]:
    """Return what a system is tested against: nothing if it is no kind of BRIM."""
    stem = system.name.stem
    if stem == "PPO with BRIM":
        return [s for s in task.systems if s.name.stem == "PPO with LLMR"]
    if stem not in ("BRIM", "BRIM+"):
        return []
    return [
        s
        for s in task.systems
        if s.name.family in ("student", "divergence", "llmr") and s is not system
    ]


def significance_tables(
    tasks: Sequence[TaskRuns], tests: TestsByTask, *, alpha: float
) -> list[Table]:
    """Return BRIM, with the K of the validation split, against each competitor; all other tests.

    Empty where nothing was tested.
    """
    main: list[tuple[TaskRuns, SeedTest]] = []
    others: list[tuple[TaskRuns, SeedTest]] = []
    for task in tasks:
        chosen = task.best_brim()
        shown = {*task.metrics[:1], *task.returns[:1]}
        for test in tests[task.label]:
            if test.test.p_value is not None:  # one pair is no test
                first = chosen and test.system == chosen.label and test.metric in shown
                (main if first else others).append((task, test))
    title = "Significance: BRIM, with the K of the validation split"
    tables = [_table("significance", title, tasks, main, alpha)]
    tables += [_table("significance_all", "Significance: every other test", tasks, others, alpha)]
    return [table for table in tables if table.rows]


def _table(
    name: str,
    title: str,
    tasks: Sequence[TaskRuns],
    tests: Sequence[tuple[TaskRuns, SeedTest]],
    alpha: float,
) -> Table:
    head = ["system", "against", "score", "difference", "p", "p (Holm)", "d_z", "pairs", "verdict"]
    rows = []
    for task, found in tests:
        test = found.test
        difference = interval_text(test.difference, test.low, test.high, spec="+.2f")
        rows.append(
            (
                Cell(task.label),
                Cell(found.system),
                Cell(found.against),
                Cell(task.name_of(found.metric)),
                Cell(difference, significant=found.better and found.significant(alpha)),
                Cell(p_text(test.p_value)),
                Cell(p_text(found.holm)),
                Cell(ABSENT if test.effect_size is None else f"{test.effect_size:+.2f}"),
                Cell(str(test.num_pairs)),
                Cell(found.verdict(alpha)),
            )
        )
    caption = (
        f"Paired two-sided t-tests over shared seeds, difference with its 95 % interval; * better "
        f"with p < {alpha:g} (the paper: p < {paper.ALPHA}). Holm: corrected for all competitors "
        "of one system on one score. d_z: mean difference over its standard deviation."
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
        "better": found.better,
        "verdict": found.verdict(alpha),
    }
