"""What a real vLLM answered, read by the client: the numbers of the model that was behind it.

Answers are recorded with the model beside them: path, request and response of each.
"""

import gzip
import json
import tarfile
from pathlib import Path

import pytest
from standin import StandIn, serving

from brim.models import Decoding, load_model
from brim.models.http import HTTPClient
from brim.models.server_api import Allowed
from brim.models.server_kinds import find_api
from brim.models.server_settings import RequestsConfig

DATA = Path(__file__).parents[2] / "data"
ANSWERS, ARCHIVE = DATA / "vllm_answers.json.gz", DATA / "vllm_teacher.tar.gz"
pytestmark = pytest.mark.skipif(not ANSWERS.exists(), reason="no answers were recorded")

# What decides about an answer here. The client says more, by which nothing changes.
NAMES = ("model", "prompt", "max_tokens", "prompt_logprobs", "logprobs")


class Player(StandIn):
    """Answers with what was recorded for such a request."""

    def __init__(self, model):
        super().__init__(model)
        self.recorded = json.loads(gzip.decompress(ANSWERS.read_bytes()))

    def asked(self, path):
        return [pair for pair in self.recorded if pair["path"] == path]

    def card(self):
        return self.asked("/v1/models")[0]["response"]["data"][0]

    def completions(self, body):
        pairs = self.asked("/v1/completions")
        fits = (p for p in pairs if all(p["request"].get(n) == body.get(n) for n in NAMES))
        return next(fits)["response"]

    def tokenize(self, body):
        return next(p for p in self.asked("/tokenize") if p["request"] == body)["response"]


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with tarfile.open(ARCHIVE) as archive:
        # Python before 3.11.4 has no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    player = Player(load_model(next(folder.rglob("config.json")).parent))
    with serving(player):
        yield player


@pytest.fixture
def api(player):
    return find_api(HTTPClient(player.url, None, RequestsConfig(max_retries=0)), "teacher", "auto")


@pytest.fixture
def prompts(player):
    """Those of the recorded requests with several."""
    lists = [p["request"]["prompt"] for p in player.asked("/v1/completions")]
    return next(ids for ids in lists if isinstance(ids[0], list))


@pytest.mark.parametrize("bootstrap", [False, True])
def test_logprobs(player, api, prompts, bootstrap):
    vocabulary = player.model.tokenizer.get_vocab().values()
    found = api.score(
        [ids[:1] for ids in prompts],
        [ids[1:] for ids in prompts],
        centering="logsumexp",
        bootstrap=bootstrap,
        allowed=Allowed.of(list(vocabulary), []),
    )
    for ids, values in zip(prompts, found, strict=True):
        states = player.logits(ids).log_softmax(1)
        best, taken = states.amax(1).tolist(), states[range(len(ids) - 1), ids[1:]].tolist()
        assert values.taken == values.logprobs == pytest.approx(taken, abs=1e-4)
        assert values.best == pytest.approx(best[:-1], abs=1e-4)
        assert values.after == (pytest.approx(best[-1], abs=1e-4) if bootstrap else None)


def test_text(player, api, prompts):
    greedy = Decoding(strategy="greedy", max_tokens=12)
    found = api.write(prompts, greedy, seed=0, ends=player.model.eos_token_ids, excluded=())
    body = {"max_tokens": 12, "temperature": 0, "stop_token_ids": player.model.eos_token_ids}
    assert found == [player.write(ids, body)[0] for ids in prompts]


def test_what_the_server_is(player, api):
    assert api.name == "vllm"
    assert api.version() == player.asked("/version")[0]["response"]["version"]
    assert isinstance(api.max_tokens, int)
    asked = [pair["request"] for pair in player.asked("/tokenize")]
    for text in [r["prompt"] for r in asked if r.get("add_special_tokens") is False]:
        own = player.model.tokenizer(text, add_special_tokens=False).input_ids
        assert api.tokenize(text) == own
