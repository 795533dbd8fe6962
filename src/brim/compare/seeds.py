"""Two methods over the seeds that both were run with: a paired t-test of each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from brim.compare.measures import different_decodings, other_measure
from brim.errors import RunError
from brim.metrics import PairedTest, Score, paired_t_test, spread
from brim.metrics.regrets import length_common_to, with_cut_returns
from brim.runs.directory import Results, RunDirectory
from brim.support.printing import Printed


@dataclass(frozen=True, slots=True)
class SeedMetric:
    """One score of both methods over the seeds they share.

    Attributes:
        label: as it is printed.
        higher_is_better: None of `length`, where more is neither.
        signature: what the numbers depend on.
        values_a, values_b: one a seed, in the order of `SeedComparison.seeds`.
        mean_a, mean_b: their means.
        sd_a, sd_b: their sample standard deviations (n − 1); None of a single seed.
        test: the two-sided paired t-test of A minus B.
    """

    label: str
    higher_is_better: bool | None
    signature: str
    values_a: tuple[float, ...]
    values_b: tuple[float, ...]
    mean_a: float
    mean_b: float
    sd_a: float | None
    sd_b: float | None
    test: PairedTest


@dataclass(frozen=True, slots=True, repr=False)
class SeedComparison(Printed):
    """Two methods compared over several seeds.

    Attributes:
        a, b: the folders.
        split: of the data.
        seeds: that both have results of.
        unpaired: by seed, why it is left out.
        metrics: by name.
        left_out: by name, why a score is not among the metrics.
        decodings: of A and B, where the texts were decoded differently.
        confidence: of the intervals.
        text: as `brim compare` prints it; "" of `compare_runs` and `compare_seeds`.
    """

    a: str
    b: str
    split: str
    seeds: tuple[str, ...]
    unpaired: Mapping[str, str]
    metrics: Mapping[str, SeedMetric]
    left_out: Mapping[str, str]
    decodings: tuple[str, str] | None
    confidence: float
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = asdict(self)
        del found["text"]
        return found


def holds_seeds(directory: Path) -> bool:
    """Return whether this is a folder of runs `seed=*`, and no run itself."""
    return not (directory / "results.json").exists() and bool(_seeds(directory))


def splits_tested(directory: Path, split: str) -> tuple[str, ...]:
    """Return `RunDirectory.tests` of a run, or of the first of a folder of seeds."""
    runs = [*_seeds(directory).values()] if holds_seeds(directory) else [directory]
    return RunDirectory(runs[0]).tests(split)


def compare_seeds(
    a: Path,
    b: Path,
    *,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> SeedComparison:
    """Compare the scores of two methods, seed by seed.

    Args:
        a: a folder with a run directory `seed=N` for each seed.
        b: another one.
        split: of the data, evaluated in both.
        metrics: names of scores; None for all that all runs have.
        confidence: coverage of the intervals of the differences.

    Raises:
        RunError: no shared seed with results of finished runs, a score that was asked for and
            cannot be compared, a damaged file, runs of one seed on other data, or of one method
            decoded differently.
    """
    results_a, missing_a = _read(a, split)
    results_b, missing_b = _read(b, split)
    seeds = [seed for seed in results_a if seed in results_b]
    results_a, results_b = _cut([results_a, results_b], seeds)
    unpaired = {**missing_b, **missing_a}
    for here, there, folder in ((results_a, results_b, b), (results_b, results_a, a)):
        for seed in here:
            if seed not in there:
                unpaired.setdefault(seed, f"not in {folder}")
    if not seeds:
        raise RunError(
            f"{a} and {b}: no seed that both have {split} results of; compare finished runs"
        )
    pairs = [(results_a[seed], results_b[seed]) for seed in seeds]
    for one, other in pairs:
        _check_same_data(one, other)
        _check_same_decoding(pairs[0][0], one)
        _check_same_decoding(pairs[0][1], other)
    compared: dict[str, SeedMetric] = {}
    left_out: dict[str, str] = {}
    names = metrics or [name for pair in pairs for run in pair for name in run.scores]
    for name in dict.fromkeys(names):
        reason = _obstacle(name, pairs)
        if reason is None:
            scores = [(one.scores[name], other.scores[name]) for one, other in pairs]
            compared[name] = _compare(name, scores, confidence)
        elif metrics:
            raise RunError(f"cannot compare {name}: {reason}; name another metric")
        else:
            left_out[name] = reason
    return SeedComparison(
        a=str(a),
        b=str(b),
        split=split,
        seeds=tuple(seeds),
        unpaired={seed: unpaired[seed] for seed in sorted(unpaired, key=_by_number)},
        metrics=compared,
        left_out=left_out,
        decodings=different_decodings(*pairs[0]),
        confidence=confidence,
    )


def _cut(methods: Sequence[dict[str, Results]], seeds: Sequence[str]) -> list[dict[str, Results]]:
    """The results of these seeds with the returns of texts cut at a length common to all."""
    found = [[results[seed] for seed in seeds] for results in methods]
    length = length_common_to([(one.scores, one.facts) for one in runs] for runs in found)
    return [
        results
        | {
            seed: replace(one, scores=with_cut_returns(one.scores, one.facts, length))
            for seed, one in zip(seeds, runs, strict=True)
        }
        for results, runs in zip(methods, found, strict=True)
    ]


def _compare(name: str, scores: Sequence[tuple[Score, Score]], confidence: float) -> SeedMetric:
    values_a, values_b = zip(*((a.value, b.value) for a, b in scores), strict=True)
    (mean_a, sd_a), (mean_b, sd_b) = spread(values_a), spread(values_b)
    return SeedMetric(
        label=scores[0][0].name,
        higher_is_better=None if name == "length" else scores[0][0].higher_is_better,
        signature=scores[0][0].signature,
        values_a=values_a,
        values_b=values_b,
        mean_a=mean_a,
        mean_b=mean_b,
        sd_a=sd_a,
        sd_b=sd_b,
        test=paired_t_test(values_a, values_b, confidence=confidence),
    )


def _obstacle(name: str, pairs: Sequence[tuple[Results, Results]]) -> str | None:
    """Why the scores of these runs, two of each seed, cannot be compared."""
    signatures: dict[str, Path] = {}
    for a, b in pairs:
        if reason := other_measure(name, a.facts, b.facts):
            return f"{reason} in {a.directory} and {b.directory}"
    for run in (run for pair in pairs for run in pair):
        if name not in run.scores:
            return f"{run.directory} does not have it"
        signatures.setdefault(run.scores[name].signature, run.directory)
    if len(signatures) > 1:
        (first, where), (second, elsewhere), *_ = signatures.items()
        return f"signature {first} in {where} and {second} in {elsewhere}"
    return None


def _check_same_data(a: Results, b: Results) -> None:
    known = a.data is not None and b.data is not None
    if a.num_examples != b.num_examples or (known and a.data != b.data):
        raise RunError(
            f"{b.directory}: evaluated on other examples than {a.directory}; "
            "evaluate both on the same data"
        )


def _check_same_decoding(first: Results, other: Results) -> None:
    different = different_decodings(first, other)
    if different:
        raise RunError(
            f"{other.directory}: decoded otherwise ({different[1]}) than {first.directory} "
            f"({different[0]}); evaluate all seeds of a method alike"
        )


def _read(directory: Path, split: str) -> tuple[dict[str, Results], dict[str, str]]:
    """By seed the results, and why there are none."""
    results: dict[str, Results] = {}
    missing: dict[str, str] = {}
    for seed, run in _seeds(directory).items():
        found = RunDirectory(run).find_results(split)
        if found is None:
            missing[seed] = f"{run} has no {split} results yet"
        elif found.stopped_at:
            missing[seed] = f"{run}: its training had not ended ({found.stopped_at})"
        else:
            results[seed] = found
    return results, missing


def _seeds(directory: Path) -> dict[str, Path]:
    """By seed the runs of a folder, in the order of the numbers."""
    found = {path.name.removeprefix("seed="): path for path in directory.glob("seed=*")}
    return {seed: found[seed] for seed in sorted(found, key=_by_number) if found[seed].is_dir()}


def _by_number(seed: str) -> tuple[int, str]:
    return (int(seed) if seed.isdecimal() else -1, seed)
