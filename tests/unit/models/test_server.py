"""A teacher behind a server gives the numbers and the text of the same model in this process."""

import random

import pytest
import torch
from standin import StandIn, serving
from tiny import NUM_TOKENS, encoded, prompts, same, tiny_language_model, written
from transformers import GenerationConfig

from brim.errors import BrimError, ConfigError, ModelError, RunError
from brim.models import Decoding, ServerTeacher, share_vocabulary
from brim.models.http import HTTPClient
from brim.models.server_checks import (
    check_tokenizer,
    describe_served,
    fingerprint_served,
    served_difference,
)
from brim.models.server_kinds import find_api
from brim.models.server_settings import RequestsConfig
from brim.types import ActionValues

QUICK = RequestsConfig(timeout=1.0, max_retries=3, tokens=20)
EXACT = {"num_rows": NUM_TOKENS}  # a token for each row: softmaxes are over the same rows


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr("brim.models.http.FIRST_WAIT", 0.001)


def connected(standin: StandIn, api: str = "auto", requests: RequestsConfig = QUICK, **client):
    client = HTTPClient(standin.url, client.get("key_env"), requests)
    model = standin.model
    return ServerTeacher(
        find_api(client, "tiny", api), model.tokenizer, model.model.generation_config, requests
    )


def assert_close(ours: ActionValues, theirs: ActionValues) -> None:
    for name in ("q_taken", "q_max", "logprobs", "bootstrap"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_logprobs_of_a_server_are_the_models_own(kind, bootstrap):
    model, rollout = written("llama", **EXACT)
    standin = StandIn(model, kind)
    with serving(standin):
        teacher = connected(standin)
        for centering in ("logsumexp", "max"):
            found = teacher.action_values(rollout, centering=centering, bootstrap=bootstrap)
            assert_close(
                found, model.action_values(rollout, centering=centering, bootstrap=bootstrap)
            )
    assert len(standin.requests) > 2, "more tokens than fit into a request are sent in several"


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_brim_serve_gives_every_centering(family):
    model, rollout = written(family)
    with serving(standin := StandIn(model, "brim")):
        teacher = connected(standin)
        assert teacher.is_encoder_decoder == model.is_encoder_decoder
        for centering in ("none", "mean", "max", "logsumexp"):
            for bootstrap in (False, True):
                found = teacher.action_values(rollout, centering=centering, bootstrap=bootstrap)
                own = model.action_values(rollout, centering=centering, bootstrap=bootstrap)
                assert_close(found, own)


def test_rows_without_a_token_are_never_the_best():
    model, rollout = written("llama")
    model.model.get_output_embeddings().weight.data[NUM_TOKENS:] *= 5  # these have none
    with serving(standin := StandIn(model)):
        teacher = connected(standin)
        found = teacher.action_values(rollout, centering="max")
        torch.testing.assert_close(
            found.q_taken, model.action_values(rollout, centering="max").q_taken
        )
        assert {body["prompt_logprobs"] for body in standin.requests} == {1, 20}
        standin.max_logprobs = 5
        with pytest.raises(ModelError, match="--max-logprobs"):
            teacher.action_values(rollout, centering="max")


def test_values_do_not_depend_on_how_rows_are_packed():
    model, rollout = written("llama", **EXACT)
    with serving(standin := StandIn(model)):
        alone = connected(standin).action_values(rollout, centering="logsumexp")
        together = RequestsConfig(tokens=10_000)
        teacher = connected(standin, requests=together)
        assert_equal(alone, teacher.action_values(rollout, centering="logsumexp"))
        scoring, rows = teacher.begin(centering="logsumexp"), list(range(len(rollout)))
        random.Random(0).shuffle(rows)
        for row in rows:  # as they end
            scoring.add([row], rollout.select([row]))
        assert_equal(alone, scoring.finish(rollout))


@pytest.mark.parametrize("room", [2, 3, 7])
def test_requests_are_as_full_as_they_may_be(room):
    model, rollout = written("llama")
    alike = rollout.select([0] * 20)
    tokens = int(alike.batch.prompt_mask[0].sum() + alike.mask[0].sum())
    with serving(standin := StandIn(model)):
        teacher = connected(standin, requests=RequestsConfig(tokens=room * tokens + tokens - 1))
        sizes = []
        ask = teacher.begin(centering="logsumexp")
        ask._ask = lambda prompts, completions, of=ask._ask: (
            sizes.append(len(prompts)),
            of(prompts, completions),
        )[1]
        ask.add(range(20), alike)
        ask.finish(alike)
    assert sorted(sizes, reverse=True) == [room] * (20 // room) + [20 % room] * (20 % room > 0)


def assert_equal(one: ActionValues, other: ActionValues) -> None:
    for name in ("q_taken", "q_max", "logprobs"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("strategy", ["greedy", "sampling"])
@pytest.mark.parametrize("batch_tokens", [8, 10_000])
def test_rows_are_handed_on_once_as_they_are_in_the_rollout(family, strategy, batch_tokens):
    model = tiny_language_model(family).eval()
    batch = encoded(model)
    decoding = Decoding(max_tokens=6, strategy=strategy, batch_tokens=batch_tokens)
    seen = {}

    def finished(rows, part):
        for i, row in enumerate(rows):
            assert row not in seen
            seen[row] = part.select([i])

    rollout = model.generate(batch, decoding, on_finished=finished)
    assert same(rollout, model.generate(batch, decoding))
    assert sorted(seen) == list(range(len(batch)))
    for row, part in seen.items():
        length = int(part.mask.sum())
        assert length == int(rollout.lengths[row])
        assert torch.equal(part.completion_ids[0, :length], rollout.completion_ids[row, :length])
        assert part.truncated[0] == rollout.truncated[row]
        assert part.batch.examples == (batch.examples[row],)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_greedy_text_is_the_models_own(kind):
    model = tiny_language_model("llama", **EXACT).eval()
    with serving(standin := StandIn(model, kind)):
        teacher = connected(standin)
        share_vocabulary(teacher, tiny_language_model("qwen2", **EXACT))
        teacher.exclude([7, 9])
        model.exclude([7, 9])
        batch = teacher.encode(prompts(), max_tokens=None)
        assert torch.equal(batch.prompt_ids, encoded(model).prompt_ids)
        decoding = Decoding(strategy="greedy", max_tokens=8)
        ours, theirs = model.generate(batch, decoding), teacher.generate(batch, decoding)
        assert same(ours, theirs)
        assert teacher.decode(theirs) == model.decode(ours)
        again = teacher.encode_completions(batch, model.decode(ours), max_tokens=9)
        assert torch.equal(again.mask.sum(1), ours.lengths + ours.truncated), (
            "an end where it was cut"
        )


def test_samples_have_their_own_seeds():
    model = tiny_language_model("llama", **EXACT).eval()
    with serving(standin := StandIn(model)):
        teacher, batch = connected(standin), encoded(model)
        teacher.generate(batch, Decoding(max_tokens=3, top_k=5))
    assert sorted(body["seed"] for body in standin.requests) == sorted(batch.seeds)
    assert all(body["top_k"] == 5 and body["temperature"] == 1 for body in standin.requests)


def test_text_that_no_rule_allows_is_refused():
    model = tiny_language_model("llama").eval()
    standin = StandIn(model)
    standin.write = lambda ids, body: ([NUM_TOKENS + 3], None)
    with serving(standin):
        teacher = connected(standin)
        with pytest.raises(ModelError, match=r"wrote token 43"):
            teacher.generate(encoded(model), Decoding(strategy="greedy", max_tokens=1))
        standin.write = lambda ids, body: ([5], None)
        with pytest.raises(ModelError, match="should have stopped"):
            teacher.generate(encoded(model), Decoding(strategy="greedy", max_tokens=4))


@pytest.mark.parametrize("faults", [["429", "500"], ["reset", "half"], ["hang"]])
def test_what_passes_is_asked_again(faults):
    model, rollout = written("llama", **EXACT)
    standin = StandIn(model)
    with serving(standin):
        teacher = connected(standin)
        plain = teacher.action_values(rollout, centering="max")
        standin.faults = list(faults)
        assert_equal(plain, teacher.action_values(rollout, centering="max"))
        assert not standin.faults


def test_a_server_that_stays_away_says_how_to_resume():
    model, rollout = written("llama", **EXACT)
    standin = StandIn(model)
    with serving(standin):
        teacher = connected(standin)
        standin.faults = ["500"] * 100
        with pytest.raises(RunError, match="tried 4 times.*same command resumes"):
            teacher.action_values(rollout, centering="max")
    with pytest.raises(RunError, match="no connection"):
        teacher.action_values(rollout, centering="max")


def test_a_key_is_sent_and_never_shown(monkeypatch):
    model, rollout = written("llama", **EXACT)
    monkeypatch.setenv("TEACHER_KEY", "secret-of-mine")
    monkeypatch.setenv("OTHER_KEY", "secret-of-others")
    with serving(standin := StandIn(model, key="secret-of-mine")):
        connected(standin, key_env="TEACHER_KEY").action_values(rollout, centering="max")
        for variable, named in {"OTHER_KEY": "401", "NO_KEY": "NO_KEY is not set"}.items():
            with pytest.raises(ConfigError, match=named) as raised:
                connected(standin, key_env=variable)
            assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "api", "what"),
    [("huge", "auto", "has no model 'huge'; it has 'tiny'"), ("tiny", "auto", "owned by 'openai'")],
)
def test_another_server_is_refused(model, api, what):
    standin = StandIn(tiny_language_model("llama"), "openai")
    with serving(standin):
        client = HTTPClient(standin.url, None, QUICK)
        with pytest.raises(ConfigError, match=what):
            find_api(client, model, api)
        assert find_api(client, "tiny", "vllm").name == "vllm"
        with pytest.raises(ConfigError, match="404"):
            find_api(HTTPClient(standin.url + "/nowhere", None, QUICK), "tiny", "auto")


def test_answers_of_another_shape_are_named():
    model, rollout = written("llama", **EXACT)
    standin = StandIn(model)
    with serving(standin):
        teacher = connected(standin)
        standin.choice = lambda index, ids, body: {"index": index, "prompt_logprobs": None}
        with pytest.raises(ModelError, match="not what vllm answers"):
            teacher.action_values(rollout, centering="max")
        standin.completions = lambda body: {"choices": []}
        with pytest.raises(ModelError, match="with 0 choices"):
            teacher.action_values(rollout, centering="max")
        with pytest.raises(ModelError, match="q_centering mean: vllm gives logsumexp and max"):
            teacher.action_values(rollout, centering="mean")


def test_rooms_are_those_of_the_server():
    with serving(standin := StandIn(tiny_language_model("llama"))):
        standin.max_model_len = 20
        teacher = connected(standin)
        teacher.check_room(9, 10)
        with pytest.raises(ModelError, match="takes 20"):
            teacher.check_room(10, 10)
        # One in this process does not read the last token, and is asked for none behind it.
        assert teacher.num_positions == 9 + 10 - 1


class TestTokenizers:
    def test_the_same(self):
        standin = StandIn(tiny_language_model("llama"))
        with serving(standin):
            teacher = connected(standin)
            assert check_tokenizer(teacher, ["w3 w9"])
            standin.hidden = {"/tokenize"}
            assert check_tokenizer(teacher, ["w3 w9"])
            standin.hidden = {"/tokenize", "/v1/completions"}
            assert not check_tokenizer(teacher)

    def test_another_one(self):
        standin = StandIn(tiny_language_model("llama"))
        with serving(standin):
            teacher = connected(standin)
            standin.tokenize = lambda body: {"tokens": [3, 4]}
            with pytest.raises(ModelError, match="different tokenizers: the server reads"):
                check_tokenizer(teacher)


class TestIdentity:
    def test_the_same_model_on_another_port(self):
        model = tiny_language_model("llama")
        with serving(one := StandIn(model)), serving(other := StandIn(model)):
            teachers = [connected(standin) for standin in (one, other)]
            first, second = map(describe_served, teachers)
            assert served_difference(first, second) is None
            assert first["version"] == "0.32.0"
            assert len({fingerprint_served(teacher) for teacher in teachers}) == 1

    def test_another_model_behind_the_name(self):
        models = [tiny_language_model("llama", spread=spread) for spread in (0.4, 0.5)]
        with serving(standin := StandIn(models[0])):
            teacher = connected(standin)
            before = describe_served(teacher)
            standin.model = models[1]
            problem = served_difference(before, describe_served(teacher))
            assert "log-probabilities of a fixed text differ" in problem
        named = {**before, "sha256": "1"}
        assert "sha256 is 2" in served_difference(named, {**named, "sha256": "2"})


def test_a_tokenizer_without_an_end_is_refused():
    model = tiny_language_model("llama")
    with serving(standin := StandIn(model)):
        model.tokenizer.eos_token = None
        api = find_api(HTTPClient(standin.url, None, QUICK), "tiny", "auto")
        with pytest.raises(ModelError, match="no end-of-sequence token"):
            ServerTeacher(api, model.tokenizer, GenerationConfig(), QUICK)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "brim"])
def test_a_server_is_asked_to_exclude_only_what_it_may_have(kind):
    """vLLM refuses a bias of a token for which it has no row."""
    with serving(standin := StandIn(tiny_language_model("llama", **EXACT).eval(), kind)):
        teacher = connected(standin)
        teacher.exclude([9, NUM_TOKENS - 1], unshared=[NUM_TOKENS - 1])
        batch = teacher.encode(prompts(), max_tokens=None)
        teacher.generate(batch.select([0]), Decoding(strategy="greedy", max_tokens=1))
        [body] = standin.requests
        excluded = body.get("sampling_params", body)["logit_bias"]
        assert set(excluded) == ({"9"} if kind != "brim" else {"9", str(NUM_TOKENS - 1)})


def test_a_student_that_never_writes_the_end_is_refused():
    with serving(standin := StandIn(tiny_language_model("llama"))), pytest.raises(BrimError):
        connected(standin).exclude([1])
