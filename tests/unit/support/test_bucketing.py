import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from brim.support.bucketing import length_buckets

Groups = Sequence[Sequence[int]]

lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=60)
limits = st.integers(1, 400)
overheads = st.integers(0, 200)


def unzip(rows: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [prompt for prompt, _ in rows], [completion for _, completion in rows]


def tokens(group: Sequence[int], rows: Sequence[tuple[int, int]]) -> int:
    """What passes the model, padding included."""
    prompts, completions = unzip([rows[i] for i in group])
    return len(group) * (max(prompts) + max(completions))


def cost(groups: Groups, rows: Sequence[tuple[int, int]], overhead: int) -> int:
    return sum(tokens(group, rows) + overhead for group in groups)


def allowed(groups: Groups, rows: Sequence[tuple[int, int]], limit: int) -> bool:
    return all(len(group) == 1 or tokens(group, rows) <= limit for group in groups)


def by_length(rows: Sequence[tuple[int, int]]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: (sum(rows[i]), rows[i]))


@given(lengths, limits, overheads)
def test_every_row_is_in_one_group_within_the_limit_or_alone(rows, limit, overhead):
    groups = length_buckets(*unzip(rows), limit, overhead=overhead)
    assert sorted(itertools.chain(*groups)) == list(range(len(rows)))
    assert allowed(groups, rows, limit)


@given(lengths, limits, overheads)
def test_groups_are_ordered_from_the_longest_rows_to_the_shortest(rows, limit, overhead):
    groups = length_buckets(*unzip(rows), limit, overhead=overhead)
    for longer, shorter in itertools.pairwise(groups):
        assert min(sum(rows[i]) for i in longer) >= max(sum(rows[i]) for i in shorter)


@given(lengths, limits, overheads)
def test_no_chunks_of_equal_size_cost_less(rows, limit, overhead):
    ours = cost(length_buckets(*unzip(rows), limit, overhead=overhead), rows, overhead)
    order = by_length(rows)
    for size in range(1, len(rows) + 1):
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        if size == 1 or allowed(chunks, rows, limit):
            assert ours <= cost(chunks, rows, overhead)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8), limits, overheads)
def test_no_other_cut_of_the_ordered_rows_costs_less(rows, limit, overhead):
    def cuts(order: list[int]) -> Iterator[Groups]:
        for marks in itertools.product([False, True], repeat=max(len(order) - 1, 0)):
            edges = [0, *(i + 1 for i, mark in enumerate(marks) if mark), len(order)]
            yield [order[a:b] for a, b in itertools.pairwise(edges) if a < b]

    groups = length_buckets(*unzip(rows), limit, overhead=overhead)
    assert cost(groups, rows, overhead) == min(
        cost(cut, rows, overhead) for cut in cuts(by_length(rows)) if allowed(cut, rows, limit)
    )


@given(lengths, limits)
def test_dearer_passes_never_make_more_of_them(rows, limit):
    numbers = [
        len(length_buckets(*unzip(rows), limit, overhead=overhead))
        for overhead in (0, 3, 50, 10**6)
    ]
    assert numbers == sorted(numbers, reverse=True)


@given(st.lists(st.integers(0, 100), min_size=1, unique=True), limits)
def test_where_passes_are_free_nothing_is_padded(completions, limit):
    rows = [(0, completion) for completion in completions]
    assert cost(length_buckets(*unzip(rows), limit, overhead=0), rows, 0) == sum(completions)


@given(
    number=st.integers(1, 200),
    length=st.integers(1, 50),
    limit=st.integers(1, 2000),
    overhead=st.integers(1, 500),
)
def test_rows_of_one_length_fill_as_few_groups_as_the_limit_allows(number, length, limit, overhead):
    groups = length_buckets([0] * number, [length] * number, limit, overhead=overhead)
    assert len(groups) == -(-number // max(1, limit // length))


def test_rows_without_a_token_cost_what_the_longest_beside_them_does():
    assert length_buckets([0] * 500, [0] * 500, 500) == [list(range(500))]
    assert length_buckets([0, 0], [0, 0], 1) == [[0, 1]]
    rows = [(0, 4), (0, 0), (0, 4), (0, 0)]
    groups = length_buckets(*unzip(rows), 8, overhead=1)
    assert [sorted(group) for group in groups] == [[0, 2], [1, 3]]
    assert length_buckets([], [], 8) == []


def test_the_longest_prompt_and_the_longest_completion_may_be_of_different_rows():
    rows = [(9, 1), (1, 9)]  # 10 tokens each, 36 together
    assert len(length_buckets(*unzip(rows), 35, overhead=100)) == 2
    assert len(length_buckets(*unzip(rows), 36, overhead=100)) == 1


def test_by_default_a_pass_costs_a_32nd_of_the_limit():
    # Two groups save five rows the 100 tokens of padding.
    rows = [(0, 100)] * 5 + [(0, 200)]
    for limit, number in ((32 * 499, 2), (32 * 501, 1)):
        assert len(length_buckets(*unzip(rows), limit)) == number
