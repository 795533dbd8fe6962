"""The text of `/v1/completions` is what the model writes, and its logprobs are the model's."""

import pytest
import torch
from serving import serving
from tiny import EOS, encoded, prompts, same, tiny, tiny_language_model, word_tokenizer
from torch.testing import assert_close
from transformers import GenerationConfig

from brim.models import Decoding, LanguageModel, ServerTeacher
from brim.models.http import HTTPClient
from brim.models.server_kinds import find_api
from brim.models.server_settings import RequestsConfig
from brim.seeding import derive_seed

each_family = pytest.mark.parametrize("family", ["t5", "llama"])


def prompt_ids(batch) -> list[list[int]]:
    return [
        ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    ]


def check_text(choices, model, rollout):
    assert [choice["text"] for choice in choices] == model.decode(rollout)
    rows = zip(rollout.completion_ids, rollout.mask, strict=True)
    assert [choice["token_ids"] for choice in choices] == [ids[mask].tolist() for ids, mask in rows]
    ends = ["length" if cut else "stop" for cut in rollout.truncated.tolist()]
    assert [choice["finish_reason"] for choice in choices] == ends


@each_family
def test_greedy_text_is_the_models(servers, family):
    model = tiny_language_model(family).eval()
    batch = encoded(model)
    choices = servers(family).complete(prompt_ids(batch), max_tokens=9)
    check_text(choices, model, model.generate(batch, Decoding(strategy="greedy", max_tokens=9)))
    assert [choice["prompt_token_ids"] for choice in choices] == prompt_ids(batch)


@each_family
def test_sampled_text_is_that_of_its_seed(servers, family):
    model = tiny_language_model(family).eval()
    seeds = [derive_seed(7, "generate", i) for i in range(5)]
    batch = model.encode(prompts(), max_tokens=None, seeds=seeds)
    settings = {"temperature": 1.5, "top_k": 9, "top_p": 0.9}
    choices = servers(family).complete(prompt_ids(batch), max_tokens=9, seed=7, **settings)
    check_text(choices, model, model.generate(batch, Decoding(max_tokens=9, **settings)))


@each_family
def test_a_bias_excludes_tokens(servers, family):
    model = tiny_language_model(family).eval()
    batch = encoded(model)
    free = servers(family).complete(prompt_ids(batch), max_tokens=9)
    first = {choice["token_ids"][0] for choice in free}
    bias = dict.fromkeys(map(str, first), -100)
    choices = servers(family).complete(prompt_ids(batch), max_tokens=9, logit_bias=bias)
    assert first.isdisjoint(token for choice in choices for token in choice["token_ids"])
    model.exclude(first)
    check_text(choices, model, model.generate(batch, Decoding(strategy="greedy", max_tokens=9)))


def test_further_stops_end_a_text(servers):
    (free,) = servers("llama").complete([[3, 4]], max_tokens=9)
    ids = free["token_ids"]
    (cut,) = servers("llama").complete([3, 4], max_tokens=9, stop_token_ids=[1, ids[2]])
    assert cut["token_ids"] == ids[: ids.index(ids[2]) + 1]
    assert cut["finish_reason"] == "stop"


def plain_logprobs(model, ids: list[int]) -> torch.Tensor:
    """Of the next token behind each of the ids, by transformers alone."""
    logits = model.model(torch.tensor([ids])).logits[0].double()
    return logits[:, :40].log_softmax(1)  # the other rows have no token


def test_logprobs_of_prompt_and_text_are_those_of_transformers(servers):
    model = tiny_language_model("llama").eval()
    prompt = [5, 9, 3, 30]
    (choice,) = servers("llama").complete(
        prompt, max_tokens=3, logprobs=2, prompt_logprobs=2, return_tokens_as_token_ids=True
    )
    text = choice["token_ids"]
    wanted = plain_logprobs(model, prompt + text)
    nothing, *places = choice["prompt_logprobs"]
    assert nothing is None
    for i, (place, token) in enumerate(zip(places, prompt[1:], strict=True)):
        order = wanted[i].argsort(descending=True).tolist()
        assert place.keys() == {str(token), *map(str, order[:2])}
        for name, found in place.items():
            assert found["logprob"] == pytest.approx(wanted[i, int(name)].item(), abs=1e-4)
            assert found["rank"] == order.index(int(name)) + 1
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{token}" for token in text]
    own = wanted[len(prompt) - 1 : -1]
    assert_close(
        torch.tensor(logprobs["token_logprobs"]).double(),
        own[range(len(text)), text],
        atol=1e-4,
        rtol=0,
    )
    for named, row in zip(logprobs["top_logprobs"], own, strict=True):
        likeliest = {f"token_id:{token}" for token in row.topk(2).indices.tolist()}
        assert named.keys() >= likeliest


def test_an_encoder_decoders_text_has_logprobs_too(servers):
    model = tiny_language_model("t5").eval()
    batch = encoded(model)
    choices = servers("t5").complete(prompt_ids(batch), max_tokens=4, logprobs=0)
    greedy = model.generate(batch, Decoding(strategy="greedy", max_tokens=4))
    wanted = model.statistics(greedy).logprobs
    for choice, row, mask in zip(choices, wanted, greedy.mask, strict=True):
        assert_close(
            torch.tensor(choice["logprobs"]["token_logprobs"]), row[mask], atol=1e-4, rtol=0
        )
        assert choice["logprobs"]["text_offset"][0] == 0
        assert choice["prompt_logprobs"] is None


@pytest.mark.parametrize(
    ("family", "body", "says"),
    [
        ("llama", {"temperature": 1}, "seed"),
        ("llama", {"logit_bias": {"5": 2.0}}, "logit_bias"),
        ("llama", {"logit_bias": {"a": -100}}, "logit_bias"),
        ("llama", {"logit_bias": {str(i): -100 for i in range(40)}}, "all tokens"),
        ("llama", {"stop_token_ids": [5]}, "stop_token_ids"),
        ("llama", {"logprobs": 21}, "limits.logprobs"),
        ("llama", {"prompt_logprobs": 21}, "limits.logprobs"),
        ("llama", {"prompt_logprobs": 1, "prompt": [3, 45]}, "token 45"),
        ("llama", {"max_tokens": 64}, "positions"),
        ("llama", {"prompt": [[]]}, "prompt"),
        ("llama", {"prompt": []}, "prompt"),
        ("llama", {"prompt": [3, "a"]}, "prompt.0.1"),
        ("llama", {"prompt": [3, 480]}, "480"),
        ("llama", {"n": 2}, "n"),
        ("t5", {"prompt_logprobs": 1}, "/v1/score"),
    ],
)
def test_what_the_server_cannot_do_is_refused(servers, family, body, says):
    given = {"prompt": [3, 4], "max_tokens": 3, "temperature": 0, **body}
    status, message = servers(family).refused("/v1/completions", **given)
    assert status == 400
    assert says in message


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("end", [None, EOS])
@pytest.mark.parametrize("begin", [None, 7])
def test_a_client_gets_the_text_of_a_model_that_forces_tokens(begin, end, known):
    """Also one whose own settings force none, which then writes as many tokens of its choice."""
    inner = tiny("bart")
    inner.generation_config.update(forced_bos_token_id=begin, forced_eos_token_id=end)
    model = LanguageModel(inner, word_tokenizer(appends_eos=True)).eval()
    settings = inner.generation_config if known else GenerationConfig(decoder_start_token_id=EOS)
    with serving(model) as served:
        requests = RequestsConfig(max_retries=0)
        client = HTTPClient(served.url, None, requests)
        api = find_api(client, "tiny", "auto")
        teacher = ServerTeacher(api, model.tokenizer, settings, requests)
        batch = teacher.encode(prompts(), max_tokens=None)
        for max_tokens in (3, 4, 9):
            decoding = Decoding(strategy="greedy", max_tokens=max_tokens)
            chosen = max_tokens - teacher.rules.num_forced
            limits = {"max_tokens": chosen + model.rules.num_forced}
            own = model.generate(batch, decoding.model_copy(update=limits))
            assert same(own, teacher.generate(batch, decoding))
            assert bool(own.truncated.any())
        teacher.close()
