"""A teacher that reads a student's text in its own tokens, on tokenizers of every kind."""

import logging
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from brim.errors import ModelError
from brim.examples import Example
from brim.models import AlignedTeacher, SpaceBoundaries, build_model, read_text, train_tokenizer
from brim.models.encoding import Encoder
from brim.returns import rewards_to_go

TEXTS = [
    "the unhappy cat's words", "a happier dog doesn't bark", "I'll sit, naïve café; 42 or 3.5!",
    "unhappy happy un happy word words", "she said\nno.\nthen (maybe) yes", "日本 and Ω",
] * 4  # fmt: skip
SPECIAL = ["<pad>", "</s>", "<unk>"]
EXAMPLE = Example("0", "the cat")


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def unigram(normalizer=None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return wrap(backend)


def t5() -> PreTrainedTokenizerFast:
    spaces = [
        normalizers.NFKC(),
        normalizers.Strip(left=False),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]
    return unigram(normalizers.Sequence(spaces))


def lowercasing() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return wrap(backend)


def without_words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer, backend.decoder = normalizers.Replace(" ", "▁"), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return wrap(backend)


def merged(*pieces: tuple[str, str]) -> PreTrainedTokenizerFast:
    """Letters, and these pairs merged in this order; words begin at spaces."""
    letters = [*SPECIAL, *string.ascii_letters, "'", "Ġ", ".", "\u010a"]
    vocabulary = dict.fromkeys([*letters, *(one + other for one, other in pieces)])
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, list(pieces)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend)


BYTES = train_tokenizer(["the cat"], kind="bpe", vocab_size=260)  # hardly a merge
KINDS = {
    "unigram": unigram(),
    "t5": t5(),
    "bpe": train_tokenizer(TEXTS, kind="bpe", vocab_size=330),
    "word": train_tokenizer(TEXTS, kind="word", vocab_size=99),
    "lowercasing": lowercasing(),
}
T5 = {"family": "t5", "d_model": 16, "layers": 1, "heads": 2}
TEACHERS = {kind: build_model(T5, tokenizer, seed=3) for kind, tokenizer in KINDS.items()}
STUDENT = build_model({**T5, "family": "llama"}, BYTES, seed=4)
READERS = {kind: AlignedTeacher(teacher, STUDENT.encoder) for kind, teacher in TEACHERS.items()}

each_kind = pytest.mark.parametrize("kind", KINDS)
some_kinds = pytest.mark.parametrize("kind", ["t5", "bpe", "lowercasing"])
texts = st.text(alphabet="unhapy'ls.\n3é日👍 \u00a0A<", max_size=14)
quick = settings(max_examples=10, deadline=None)


def written(*token_ids: list[int], cut: bool = False, student=STUDENT):
    """Completions of the student, without an end where they are cut."""
    batch = student.encode([EXAMPLE] * len(token_ids), max_tokens=None)
    end = [] if cut else [student.eos_token_ids[0]]
    rows = [[*ids, *end] for ids in token_ids]
    return student.encoder.rollout(batch, rows, 999, [cut] * len(rows))


def ids_of(text: str, tokenizer=BYTES) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def totals(reader: AlignedTeacher, text: str, *, cut: bool = False):
    """Regret and return of a text, as the teacher finds them along its own tokens."""
    [reading] = read_text(reader.encoder, [text], [not cut])
    batch = reader.encode([EXAMPLE], max_tokens=None)
    values = reader.teacher.action_values(reader.encoder.rollout(batch, [reading.ids], 999, [cut]))
    mask = torch.ones_like(values.q_max) > 0
    regret = (values.q_max - values.q_taken).sum()
    return regret, rewards_to_go(values.q_taken, values.q_max, mask)[0, 0], len(reading.ids)


# Where tokens begin whatever follows


def test_the_kinds_of_places_are_those_of_the_tokenizer():
    spaces = {("letter", "space"), ("digit", "space"), ("other", "space")}
    found = {kind: reader._boundaries.kinds for kind, reader in READERS.items()}
    assert found["unigram"] == spaces  # "▁" begins a piece; a line break is like a letter
    assert found["bpe"] >= spaces | {("letter", "break"), ("break", "letter")}
    assert ("space", "letter") not in found["bpe"]
    assert found["word"] >= spaces | {("space", "letter")}
    assert not SpaceBoundaries(without_words()).kinds


def test_a_text_can_take_a_kind_away():
    backend = BYTES.backend_tokenizer
    joined = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()))
    assert ("letter", "space") in SpaceBoundaries(joined).kinds
    joined.add_tokens(["of course"])
    assert ("letter", "space") not in SpaceBoundaries(joined).kinds


@each_kind
@quick
@given(texts, texts)
def test_tokens_before_a_place_do_not_depend_on_what_follows(kind, text, behind):
    places = READERS[kind]._boundaries(text)
    assert READERS[kind]._boundaries(text + behind)[: len(places)] == places
    short, long = read_text(READERS[kind].encoder, [text, text + behind], [False, True])
    for place, known in places:
        assert place < known <= len(text)
        kept = [
            [i for i, start in zip(r.ids, r.starts, strict=True) if start < place]
            for r in (short, long)
        ]
        assert kept[0] == kept[1]


# The text of the student's tokens


@quick
@given(texts)
def test_characters_are_complete_with_their_last_byte(text):
    ids = ids_of(text)
    found = READERS["t5"].written(ids, cut=False)
    assert found.text == text
    decoded = [BYTES.decode(ids[:t]) for t in range(len(ids))]
    assert found.known == [len(prefix.rstrip("\ufffd")) for prefix in decoded]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word", "lowercasing"])
def test_students_of_any_tokenizer_spell_their_text(kind):
    reader = AlignedTeacher(TEACHERS["t5"], TEACHERS[kind].encoder)
    for text in TEXTS[:6]:
        ids = ids_of(text, KINDS[kind])
        found = reader.written(ids, cut=False)
        assert found.text == TEACHERS[kind].encoder.texts([ids])[0]
        assert found.known == sorted(found.known)
        assert found.known[0] == 0
        assert found.known[-1] < len(found.text)


def test_half_a_character_at_a_cut_is_no_text():
    ids = ids_of("ab é")[:-1]
    assert READERS["t5"].written(ids, cut=True).text == "ab "
    assert READERS["t5"].written(ids, cut=False).text == "ab \ufffd"


# Segments


def segments(reader: AlignedTeacher, text: str) -> list[str]:
    """The student's tokens of each segment, joined; it writes bytes."""
    index = reader.action_values(written(ids_of(text))).segments.index[0].tolist()
    pieces = [BYTES.decode([i]) for i in ids_of(text)] + ["$"]
    found = [""] * (max(index) + 1)
    for number, piece in zip(index, pieces, strict=True):
        found[number] += piece
    return found


def test_a_token_that_begins_a_word_belongs_to_the_one_that_it_closes():
    assert segments(READERS["t5"], "no is yes") == ["no ", "is ", "yes$"]
    assert segments(READERS["word"], "no is") == ["no ", "i", "s$"]  # "no", " ", "is"


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        # "un" + "happy" is read as "unh" + "appy".
        ([("u", "n"), ("un", "h"), ("a", "p"), ("ap", "p"), ("app", "y")], "unhappy"),
        ([("'", "l"), ("'l", "l")], "I'll"),
    ],
    ids=["unhappy", "I'll"],
)
def test_nothing_is_certain_inside_a_word(pieces, text):
    teacher = build_model({**T5, "family": "llama"}, merged(*pieces), seed=0)
    reader = AlignedTeacher(teacher, STUDENT.encoder)
    assert segments(reader, text) == [f"{text}$"]
    assert segments(reader, f"{text} so") == [f"{text} ", "so$"]


def test_leading_and_double_spaces_are_text():
    assert segments(READERS["bpe"], " a  b") == [" a ", " b$"]
    for text in (" a", "a ", "  ", "a  b "):
        values = READERS["t5"].action_values(written(ids_of(text)))
        regret, *_ = totals(READERS["t5"], text)
        torch.testing.assert_close((values.q_max - values.q_taken).sum(), regret)


@some_kinds
@quick
@given(texts, st.booleans())
def test_regrets_and_return_are_those_of_the_teachers_own_reading(kind, text, cut):
    text = text.strip() or "a"
    rollout = written(ids_of(text), cut=cut)
    values = READERS[kind].action_values(rollout)
    regret, first, length = totals(READERS[kind], text, cut=cut)
    own = rewards_to_go(values.q_taken, values.q_max, rollout.mask)[0, 0]
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close((values.q_max - values.q_taken).sum(), regret, **close)
    torch.testing.assert_close(own, first, **close)
    assert values.segments.teacher_tokens.tolist() == [length]


@some_kinds
@quick
@given(texts, texts, texts)
def test_a_segment_is_decided_by_what_was_written_before(kind, shared, one, other):
    ids = [ids_of(shared) + ids_of(behind) for behind in (one, other)]
    same = len(ids_of(shared)) + 1  # with the token in which they may differ
    q = READERS[kind].action_values(written(*ids))
    for field in (q.segments.index, q.q_max):
        torch.testing.assert_close(field[0, :same], field[1, :same], atol=1e-5, rtol=1e-5)


def test_rows_do_not_depend_on_each_other():
    rollout = written(ids_of("no is"), ids_of("an unhappy cat's word"), [])
    together = READERS["t5"].action_values(rollout)
    for row in range(3):
        alone = READERS["t5"].action_values(rollout.select([row]))
        torch.testing.assert_close(together.q_taken[row], alone.q_taken[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(together.segments.index[row], alone.segments.index[0])


# What cannot be read as it is


def test_what_the_teacher_cannot_spell_is_counted():
    values = READERS["word"].action_values(written(ids_of("the zebra cat's"), ids_of("happy")))
    assert values.segments.unspelled.tolist() == [1, 0]
    assert bool(values.q_taken.isfinite().all())


@each_kind
def test_special_tokens_that_are_spelled_are_text(kind):
    encoder = TEACHERS[kind].encoder
    [reading] = read_text(encoder, ["a </s> b <pad>"], [True])
    assert reading.ids.index(encoder.eos_token_ids[0]) == len(reading.ids) - 1
    values = READERS[kind].action_values(written(ids_of("a </s> b <pad>")))
    assert bool(values.q_taken.isfinite().all())


def test_a_token_that_is_never_written_stands_as_unknown():
    teacher = build_model(T5, KINDS["word"], seed=3)
    teacher.exclude(ids_of("happy", KINDS["word"]))
    reader = AlignedTeacher(teacher, STUDENT.encoder)
    values = reader.action_values(written(ids_of("un happy")))
    assert values.segments.unspelled.tolist() == [1]
    assert bool(values.q_taken.isfinite().all())


def test_empty_and_cut_completions():
    ended = READERS["t5"].action_values(written([]))
    assert ended.segments.teacher_tokens.tolist() == [1]
    cut = READERS["t5"].action_values(written(ids_of("é")[:1], cut=True))
    assert cut.segments.teacher_tokens.tolist() == [0]
    assert not cut.q_max.any()
    both = written(ids_of("no is"), cut=True)
    assert READERS["t5"].action_values(both).segments.index.tolist() == [[0, 0, 0, 1, 1]]


def test_no_state_behind_a_cut_is_valued():
    with pytest.raises(ModelError, match="truncated"):
        READERS["t5"].action_values(written(ids_of("no"), cut=True), bootstrap=True)


def test_a_long_text_is_read_as_far_as_there_are_positions():
    small = {"family": "gpt2", "d_model": 16, "layers": 1, "heads": 2, "max_positions": 12}
    teacher = build_model(small, BYTES, seed=0)
    student = build_model({**T5, "family": "llama"}, KINDS["bpe"], seed=0)
    reader = AlignedTeacher(teacher, student.encoder)
    prompt = reader.encode([EXAMPLE], max_tokens=None).prompt_ids.shape[1]
    rollout = written(ids_of("the unhappy cat's words", KINDS["bpe"]), student=student)
    found = reader.action_values(rollout).segments
    assert found.teacher_tokens.tolist() == [12 - prompt + 1]
    assert found.unspelled > 0


def test_a_tokenizer_without_words_has_one_segment_a_text(caplog):
    teacher = build_model(T5, without_words(), seed=0)
    with caplog.at_level(logging.WARNING):
        reader = AlignedTeacher(teacher, STUDENT.encoder)
    assert "one segment" in caplog.text
    assert segments(reader, "no is yes") == ["no is yes$"]


def test_a_place_that_a_token_crosses_is_given_up(caplog):
    reader = AlignedTeacher(TEACHERS["word"], STUDENT.encoder, boundaries=lambda text: [(1, 1)])
    with caplog.at_level(logging.WARNING):
        assert segments(reader, "happy") == ["happy$"]
    assert "lies across" in caplog.text


def test_all_else_is_the_teachers_own():
    reader, teacher = READERS["t5"], TEACHERS["t5"]
    batch = reader.encode([EXAMPLE], max_tokens=3)
    assert torch.equal(batch.prompt_ids, teacher.encode([EXAMPLE], max_tokens=3).prompt_ids)
    target = reader.encode_completions(batch, ["happy"], max_tokens=9)
    assert reader.decode(target) == ["happy"]
    assert reader.num_positions is teacher.num_positions
    reader.check_room(3, 3)
    with reader.evaluating():
        assert not torch.is_grad_enabled()
    assert reader.map(target, len) == 1


def test_a_tokenizer_that_does_not_say_where_tokens_are_reads_in_one_piece():
    tokenizer = ByT5Tokenizer()  # in Python, of bytes
    assert not SpaceBoundaries(tokenizer)("no is")
    [reading] = read_text(Encoder(tokenizer, [tokenizer.eos_token_id], 0), ["no is"], [True])
    assert reading.starts == [0] * 5 + [5]
