"""A judge's results as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from brim.judge.prompts import VARIANTS, Pair, Verdict, one_line
from brim.support.tables import p_text

NUM_EXAMPLES = 5
_SHOWN_CHARACTERS = 600

Answer = tuple[Verdict, str] | None
"""A verdict and the raw reply that it was read from; None where there is no reply."""

Verdicts = Mapping[str, Sequence[Sequence[Answer]]]
"""By criterion, for each pair that the judge was asked about, the answers to its four queries."""

_Row = Mapping[str, Any]


def as_markdown(results: Mapping[str, Any], pairs: Sequence[Pair], verdicts: Verdicts) -> str:
    """Return what `judge.md` holds: the results, and verdicts on the pairs asked about."""
    warnings = [f"- {line}" for line in _warnings(results)]
    parts = (
        _head(results),
        _tables(results["criteria"]),
        ["## Warnings\n", *warnings, ""] if warnings else [],
        _examples(pairs, verdicts),
    )
    return "\n".join(line for part in parts for line in part)


def summary_lines(results: Mapping[str, Any]) -> str:
    """Return the win rates and what is wrong with them, in a few lines."""
    lines = []
    for name, row in results["criteria"].items():
        rate = "no win rate"
        if results["num_identical"] == results["num_examples"]:
            rate = "no pair needed the judge: all texts are equal"
        elif row["win_rate"] is not None:
            rate = (
                f"A wins {_percent(row['win_rate'])} [{_percent(row['low'])}, "
                f"{_percent(row['high'])}] over {row['num_pairs']:,} pairs"
            )
        lines.append(
            f"{name}: {rate}; refused {row['refusals']:,}, unparsable {row['unparsable']:,}, "
            f"not answered {row['unanswered']:,}"
        )
    return "\n".join([*lines, *(f"warning: {line}" for line in _warnings(results))])


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    a, b, judge = results["a"], results["b"], results["judge"]
    where = f" at {judge['base_url']}" if "base_url" in judge else " in this process"
    request = ", ".join(f"{name} {value}" for name, value in judge["request"].items())
    yield "# Judge\n"
    yield f"- A: {_code(a['name'])} ({_code(a['directory'])})"
    yield f"- B: {_code(b['name'])} ({_code(b['directory'])})"
    yield (
        f"- {results['num_examples']:,} of {results['num_examples_of_split']:,} examples of "
        f"{results['split']} (seed {results['seed']}), {results['num_identical']:,} of them with "
        "equal texts"
    )
    yield f"- judge: {_code(judge['model'])}{where} ({_code(request)})"
    yield (
        f"- {results['num_queries']:,} queries; {results['prompt_tokens']:,} tokens read and "
        f"{results['completion_tokens']:,} written, as the judge counts them\n"
    )


def _tables(criteria: Mapping[str, _Row]) -> Iterator[str]:
    yield "## Win rate of A\n"
    yield from _table(
        criteria,
        {
            "win rate": lambda row: _percent(row["win_rate"]),
            "95 % interval": _interval,
            "pairs": _count("num_pairs"),
            "A 4 of 4": _count("pairs_won"),
            "B 4 of 4": _count("pairs_lost"),
            "split": _count("pairs_split"),
            "p": lambda row: p_text(row["p_value"]),
            "of queries": lambda row: _percent(row["query_win_rate"]),
        },
        "A pair's score is the mean of its four queries, each order with each naming: 1 where A "
        "won, 0 where B did, ½ for a tie. Pairs of equal texts count as ½. The interval is "
        "Wilson's over pairs; p is a two-sided sign test over the pairs that are not even. The "
        "last column is the share of single queries that A won, as the paper reports it.",
    )
    yield "## Counts of queries\n"
    yield from _table(
        criteria,
        {
            "A won": _count("wins"),
            "B won": _count("losses"),
            "tie": _count("ties"),
            "refused": _count("refusals"),
            "unparsable": _count("unparsable"),
            "not answered": _count("unanswered"),
            "pairs left out": _count("num_incomplete"),
        },
        "A refusal, a reply without a verdict and a query without a reply are no loss of either: a "
        "pair with one of them is left out. The next start asks the unanswered ones again.",
    )
    yield "## Bias of the judge\n"
    yield from _table(
        criteria,
        {
            "first position": lambda row: _bias(row["first_position"]),
            "ID A": lambda row: _bias(row["id_a"]),
            "changed by order": lambda row: _changed(row["by_order"]),
            "changed by ID": lambda row: _changed(row["by_id"]),
        },
        "How often it preferred the text listed first, and the one called A: half of the time, "
        "without a bias. Then how often it changed its mind when the order alone, or the IDs "
        "alone, were swapped. `biased` marks p < 0.01 in a sign test over pairs.",
    )


def _warnings(results: Mapping[str, Any]) -> Iterator[str]:
    for name, row in results["criteria"].items():
        if row["position_biased"]:
            place = _preferred(row["first_position"], "listed first", "listed second")
            yield f"{name}: the judge is position-biased: it prefers the text {place}"
        if row["id_biased"]:
            place = _preferred(row["id_a"], "called A", "called B")
            yield f"{name}: the judge is position-biased by ID: it prefers the text {place}"
        if results["num_identical"] == results["num_examples"]:
            yield f"{name}: no pair needed the judge, for all texts are equal: there is no win rate"
        elif row["win_rate"] is None:
            yield f"{name}: no pair has four verdicts, so there is no win rate"
    if results["num_failed"]:
        reasons = "; ".join(_code(reason) for reason in results["failures"])
        yield f"{results['num_failed']:,} queries failed in this start: {reasons}"
    if results["suspicious"]:
        ids = ", ".join(_code(name) for name in results["suspicious"][:10])
        yield (
            f"{len(results['suspicious']):,} examples have a text that imitates the prompt or a "
            f"verdict, such as {ids}: read them"
        )


def _examples(pairs: Sequence[Pair], verdicts: Verdicts) -> Iterator[str]:
    for criterion, fours in verdicts.items():
        both = list(zip(pairs, fours, strict=True))
        disagreed = [(pair, four) for pair, four in both if len(set(_scores(four)) - {None}) > 1]
        unread = [
            (pair, answer[1])
            for pair, four in both
            for answer in four
            if answer is not None and answer[0] in (Verdict.UNPARSABLE, Verdict.REFUSAL)
        ]
        if disagreed:
            yield f"## {criterion}: the judge against itself ({len(disagreed):,} pairs)\n"
            for pair, four in disagreed[:NUM_EXAMPLES]:
                texts = {"id": pair.id, "source": pair.source, "A": pair.a, "B": pair.b}
                yield _block(texts | _winners(four))
        if unread:
            yield f"## {criterion}: replies without a verdict ({len(unread):,})\n"
            for pair, reply in unread[:NUM_EXAMPLES]:
                yield _block({"id": pair.id, "reply": reply or "(empty)"})


def _scores(four: Sequence[Answer]) -> list[float | None]:
    return [
        variant.score(answer and answer[0]) for variant, answer in zip(VARIANTS, four, strict=True)
    ]


def _winners(four: Sequence[Answer]) -> dict[str, str]:
    """By the way of asking, the system that was preferred, or why there is none."""
    found = {}
    for variant, answer, score in zip(VARIANTS, four, _scores(four), strict=True):
        asked = f"{'A first' if variant.a_first else 'B first'}, A called {variant.id_of_a}"
        why = "not answered" if answer is None else answer[0].value
        found[asked] = why if score is None else {1.0: "A", 0.0: "B", 0.5: "tie"}[score]
    return found


def _table(
    criteria: Mapping[str, _Row], columns: Mapping[str, Callable[[_Row], str]], caption: str
) -> Iterator[str]:
    yield f"| criterion | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in criteria.items():
        yield f"| {name} | {' | '.join(cell(row) for cell in columns.values())} |"
    yield f"\n{caption}\n"


def _block(lines: Mapping[str, str]) -> str:
    """An indented block, in which any text is shown as it is."""
    return "".join(f"    {name}: {_short(text)}\n" for name, text in lines.items())


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"


def _code(text: str) -> str:
    return f"`{one_line(text).replace('`', chr(39))}`"


def _count(name: str) -> Callable[[_Row], str]:
    return lambda row: f"{row[name]:,}"


def _percent(rate: float | None) -> str:
    return "none" if rate is None else f"{100 * rate:.2f} %"


def _interval(row: _Row) -> str:
    return "none" if row["low"] is None else f"{_percent(row['low'])} to {_percent(row['high'])}"


def _bias(row: _Row) -> str:
    flag = ", biased" if row["biased"] else ""
    return f"{_percent(row['rate'])} (p {p_text(row['p_value'])}{flag})"


def _preferred(row: _Row, place: str, other: str) -> str:
    if row["rate"] < 0.5:
        row, place = {**row, "rate": 1 - row["rate"]}, other
    return f"{place}, whichever that is, in {_bias(row)} of its verdicts"


def _changed(row: _Row) -> str:
    return f"{_percent(row['rate'])} ({row['changed']:,} of {row['compared']:,})"
