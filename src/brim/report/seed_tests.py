"""Is BRIM better than its competitors? Paired t-tests over the seeds that two systems share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from brim.metrics import PairedTest, holm, paired_t_test
from brim.report.systems import SystemRuns, TaskRuns


@dataclass(frozen=True, slots=True)
class SeedTest:
    """One system against another on one score.

    Attributes:
        system, against: labels.
        metric: key of the score.
        test: of `system` minus `against`, over shared seeds.
        holm: the p-value corrected for all that `system` was tested against on this score; None
            where the test has none.
        better: whether the difference is in favour of `system`, whichever way is better.
    """

    system: str
    against: str
    metric: str
    test: PairedTest
    holm: float | None
    better: bool

    def significant(self, alpha: float) -> bool:
        """Whether the uncorrected p-value is below alpha, as in the paper."""
        return self.test.p_value is not None and self.test.p_value < alpha

    def verdict(self, alpha: float) -> str:
        """In a word or two, for a table."""
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
    """One test, uncorrected; None where the two share no seed or were decoded differently."""
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
    """Each BRIM against each competitor on each score but the length; and PPO's two kinds.

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
    """Those that a system is tested against; none of a system that is no kind of BRIM."""
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
