"""A run's student for others: its card, the hub, other engines."""

import base64
import getpass
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import huggingface_hub
import pytest
import yaml
from pairs import LLAMA, T5
from rundirs import change_results

from brim.cli.process import flush_denormals
from brim.runs.card import write_card
from brim.runs.directory import RunDirectory
from brim.runs.stage_results import evaluate_stages
from brim.runs.train import train

COMMIT = "https://huggingface.co/me/small/commit/1"
SHORT = ("trainer.max_steps=2", "evaluation.expected_returns=false")


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """`finished(model)` is a run that ended, with its teacher and its start tested."""
    runs = {}

    def run(model):
        if model not in runs:
            folder = tmp_path_factory.mktemp("release") / "run"
            train(make_config(model, *SHORT), folder)
            evaluate_stages(folder)
            flush_denormals(False)  # as the other engines compute
            runs[model] = folder
        return runs[model]

    return run


@pytest.fixture
def run(finished, tmp_path):
    """A run of one's own, to be spoiled."""
    shutil.copytree(
        finished(T5), tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "export")
    )
    return tmp_path / "run"


def parts(text):
    """The metadata and the body of a card."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("model", [T5, LLAMA], ids=["t5", "llama"])
def test_the_code_of_the_card_writes_the_text_of_the_test(finished, model, capsys):
    run = finished(model)
    text = (run / "best" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for row in list(RunDirectory(run).predictions("test"))[:3]:
        filled = code.replace('name = "…"', f"name = {str(run / 'best')!r}")
        filled = filled.replace('prompt = "…"', f"prompt = {row.prompt!r}")
        capsys.readouterr()
        exec(filled, {})
        assert capsys.readouterr().out == row.text + "\n"


@pytest.mark.parametrize(
    ("decoding", "arguments"),
    [
        ({"strategy": "greedy"}, "do_sample=False, num_beams=1"),
        (
            {"strategy": "sampling", "temperature": 0.7, "top_k": None, "top_p": None},
            "do_sample=True, num_beams=1, top_k=0, top_p=1.0, temperature=0.7",
        ),
        (
            {"strategy": "beam", "num_beams": 4},
            "do_sample=False, num_beams=4, early_stopping='never', renormalize_logits=True",
        ),
    ],
)
def test_the_code_of_the_card_leaves_nothing_to_other_settings(run, decoding, arguments):
    change_results(run, decoding=decoding)
    assert f"max_new_tokens=8, {arguments})" in write_card(run).read_text()


def test_card_says_scores_of_all_three_and_nothing_of_this_machine(finished, numerals):
    run = finished(T5)
    text = (run / "best" / "README.md").read_text()
    front, body = parts(text)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert "license" not in front
    assert "base_model" not in front
    data = huggingface_hub.ModelCardData(**front)
    scores = RunDirectory(run).results("test").scores
    assert {one.metric_type: one.metric_value for one in data.eval_results} == {
        key: round(score.value, 4) for key, score in scores.items()
    }
    assert "| score | teacher | start | this model |" in body
    ter = scores["ter"]
    assert f"{ter.value:.1f} [{ter.low:.1f}, {ter.high:.1f}] |\n" in body
    manifest = RunDirectory(run).manifest()
    for known in (manifest["models"]["teacher"], *manifest["data"].values()):
        assert known["sha256"] in body
    assert "write {number} in Roman numerals:" in body
    for private in (str(numerals), str(run.parent), getpass.getuser() + "/"):
        assert private not in text
    assert "train: train.jsonl" in body
    assert RunDirectory(run).check_best() is None


def test_card_is_the_same_again_and_an_edited_one_is_kept(run, brim_says):
    card = run / "best" / "README.md"
    before = card.read_bytes()
    card.unlink()
    assert write_card(run).read_bytes() == before
    change_results(run, best_step=1)
    assert write_card(run).read_bytes() != before  # nobody edited it
    card.write_text("---\nlicense: mit\n---\nMine.\n")
    write_card(run)
    assert card.read_text().endswith("Mine.\n")
    assert brim_says("card", run)[0] == 0
    assert "Mine." not in card.read_text()


def test_card_has_the_license_of_the_models_behind_it(run):
    folder = run.parent / "alice" / "models" / "big"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    path = run / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for role in ("teacher", "student"):
        settings[role] |= {"path": str(folder), "build": None}
    manifest = json.loads((run / "manifest.json").read_text())
    for key in ("sha256", "config_sha256", "sealed"):
        manifest.pop(key)
    (run / "manifest.json").write_text(json.dumps(manifest))
    path.write_text(yaml.safe_dump(settings))
    front, body = parts(write_card(run).read_text())
    assert front["license"] == "apache-2.0"
    assert "- `big`: apache-2.0" in body
    assert "alice" not in body

    (folder / "README.md").unlink()
    manifest["models"]["student"]["commit"] = "0" * 40
    manifest["models"]["teacher"]["commit"] = "0" * 40
    settings["student"]["path"] = settings["teacher"]["path"] = "org/small"
    (run / "manifest.json").write_text(json.dumps(manifest))
    path.write_text(yaml.safe_dump(settings))
    front, body = parts(write_card(run).read_text())
    assert "license" not in front
    assert front["base_model"] == ["org/small"]
    assert front["base_model_relation"] == "finetune"
    assert "- `org/small`: unknown" in body


class Hub(ThreadingHTTPServer):
    """Answers as the hub does to whoever makes a repository and commits to it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked, self.files, self.status, self.visible = [], {}, 200, None


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body, **headers):
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        hub = self.server
        hub.asked.append(("GET", self.path, self.headers["Authorization"]))
        if hub.status != 200:
            self.answer(hub.status, {"error": "on purpose"})
        elif hub.visible is None:
            self.answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        else:
            self.answer(200, {"id": "me/small", "private": hub.visible == "private"})

    def do_POST(self):
        hub = self.server
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        hub.asked.append(("POST", self.path, self.headers["Authorization"]))
        if hub.status != 200:
            self.answer(hub.status, {"error": "on purpose"})
        elif self.path == "/api/repos/create":
            wish = json.loads(raw)
            private = wish.get("private", wish.get("visibility") == "private")
            hub.visible = "private" if private else "public"
            self.answer(200, {"url": "https://huggingface.co/me/small"})
        elif self.path == "/api/validate-yaml":
            wrong = [{"message": '"license" must be known'}] if b"license: mine" in raw else []
            self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(raw)["files"]
            ]
            self.answer(200, {"files": files})
        else:
            for line in map(json.loads, raw.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": COMMIT, "commitOid": "1"})


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    yield server
    server.shutdown()
    server.server_close()


def test_push_sends_the_model_and_its_card_once_said_yes(run, hub, brim_says):
    template = run / "best" / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    template.write_text("{{ messages }}")  # as of a tokenizer with several
    code, out, _ = brim_says("push", run, "me/small", "--dry-run")
    assert code == 0
    assert "to me/small (private)" in out
    assert "license: unknown" in out
    assert "  additional_chat_templates/tool_use.jinja\n" in out
    assert hub.asked == []
    code, _, err = brim_says("push", run, "me/small")
    assert code == 2
    assert "--yes" in err
    assert hub.asked == []

    code, out, _ = brim_says("push", run, "me/small", "--yes")
    assert code == 0
    assert out.splitlines()[-1] == COMMIT
    assert hub.visible == "private"
    # The library may ask for a list of coding agents first, once a day, for its own headers.
    asked = [request for request in hub.asked if request[1] != "/api/agent-harnesses"]
    assert {authorization for *_, authorization in asked} == {"Bearer a-token"}
    sent = {"README.md", "config.json", "generation_config.json", "model.safetensors",
            "tokenizer.json", "tokenizer_config.json",
            "additional_chat_templates/tool_use.jinja"}  # fmt: skip
    assert hub.files.keys() == sent
    for name, content in hub.files.items():
        assert content == (run / "best" / name).read_bytes()


def test_push_makes_nothing_public_unasked(finished, hub, brim_says):
    hub.visible = "public"
    code, _, err = brim_says("push", finished(T5), "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert "give --public" in err
    assert hub.files == {}
    assert brim_says("push", finished(T5), "me/small", "--yes", "--public")[0] == 0
    assert "model.safetensors" in hub.files


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "HF_TOKEN"), (403, "write access"), (404, "check the name"), (418, "try again later")],
)
def test_what_the_hub_refuses_is_one_line(finished, hub, brim_says, status, words):
    hub.status = status
    code, _, err = brim_says("push", finished(T5), "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert f"the hub answers {status}" in err
    assert words in err


def test_no_token_no_network_and_offline_are_one_line(finished, hub, brim_says, monkeypatch):
    hub.shutdown()
    hub.server_close()
    code, _, err = brim_says("push", finished(T5), "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert "no answer of http://127.0.0.1" in err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    code, _, err = brim_says("push", finished(T5), "me/small", "--yes")
    huggingface_hub.close_session()
    assert (code, err.count("\n")) == (2, 1)
    assert "HF_HUB_OFFLINE" in err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("brim.release.push.get_token", lambda: None)
    code, _, err = brim_says("push", finished(T5), "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert "hf auth login" in err
    code, _, err = brim_says("push", finished(T5), "me//small", "--yes")
    assert "user/name" in err


def test_a_card_that_the_hub_refuses_is_one_line(run, hub, brim_says):
    (run / "best" / "README.md").write_text("---\nlicense: mine\n---\n")
    code, _, err = brim_says("push", run, "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert "must be known" in err
    assert hub.files == {}


SECRETS = ["hf_" + "a1" * 17, "sk-" + "b2" * 20, "AKIA" + "C3" * 8,
           "-----BEGIN RSA PRIVATE KEY-----"]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_push_refuses_secrets(run, hub, brim_says, secret):
    with (run / "best" / "README.md").open("a") as file:
        file.write(f"\nuse {secret}\n")
    code, _, err = brim_says("push", run, "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert "README.md:" in err
    assert secret not in err
    assert hub.asked == []


@pytest.mark.parametrize("name", ["train.jsonl", "data/rows.parquet", "modeling.py", ".env"])
def test_push_refuses_what_is_no_model(run, hub, brim_says, name):
    (run / "best" / name).parent.mkdir(exist_ok=True)
    (run / "best" / name).write_text("{}")
    code, _, err = brim_says("push", run, "me/small", "--yes")
    assert (code, err.count("\n")) == (2, 1)
    assert name in err
    assert hub.asked == []


def test_push_refuses_a_run_that_is_unfinished_or_damaged(run, hub, brim_says):
    change_results(run, steps=1)
    code, _, err = brim_says("push", run, "me/small", "--yes")
    assert code == 2
    assert "has not ended (step 1 of 2)" in err
    change_results(run, steps=2)
    (run / "best" / "config.json").write_text("{}")
    code, _, err = brim_says("push", run, "me/small", "--yes")
    assert code == 2
    assert "config.json" in err
    (run / "results.json").unlink()
    code, _, err = brim_says("push", run, "me/small", "--yes")
    assert code == 2
    assert "brim evaluate" in err
    assert hub.asked == []


needs_ct2 = pytest.mark.skipif(find_spec("ctranslate2") is None, reason="needs the extra ct2")
needs_onnx = pytest.mark.skipif(find_spec("onnx_ir") is None, reason="needs the extra onnx")


@needs_ct2
@pytest.mark.parametrize("model", [T5, LLAMA], ids=["t5", "llama"])
def test_export_to_ctranslate2(finished, model, brim_says):
    run = finished(model)
    code, out, _ = brim_says("export", run, "--to", "ct2")
    assert code == 0
    assert out == f"{run / 'export' / 'ct2'}: 20 of 20 greedy texts as by transformers\n"
    facts = json.loads((run / "export" / "ct2" / "manifest.json").read_text())
    assert facts["model"] == RunDirectory(run).results("test").facts["model"]
    assert "tokenizer.json" in facts["files"]


@needs_ct2
def test_export_of_other_texts_leaves_nothing(run, brim_says, monkeypatch):
    from brim.release import ct2

    write = ct2.write

    def other(folder, prompts, *args, **options):
        return [[3], [3], *write(folder, prompts, *args, **options)[2:]]

    monkeypatch.setattr(ct2, "write", other)
    code, _, err = brim_says("export", run, "--to", "ct2")
    assert (code, err.count("\n")) == (2, 1)
    assert "2 of 20 greedy texts differ" in err
    assert [path.name for path in (run / "export").iterdir()] == []
    code, out, _ = brim_says("export", run, "--to", "ct2", "--quantize", "int8")
    assert code == 0
    same = re.search(r"ct2-int8: (\d+) of 20 greedy texts", out)
    assert 0 <= int(same[1]) <= 18


@needs_onnx
@pytest.mark.parametrize("options", [(), ("--quantize", "int4")], ids=["float32", "int4"])
def test_export_to_onnx(finished, brim_says, options):
    code, out, _ = brim_says("export", finished(LLAMA), "--to", "onnx", *options)
    assert code == 0
    assert options or "20 of 20" in out


def test_export_says_what_is_missing_or_cannot_be(run, brim_says, monkeypatch):
    from brim.release import formats

    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    code, _, err = brim_says("export", run, "--to", "onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'brim-distill[onnx]'" in err
    monkeypatch.setattr(formats, "find_spec", lambda name: name)
    code, _, err = brim_says("export", run, "--to", "onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "knows no encoder-decoders such as t5" in err
    code, _, err = brim_says("export", run, "--to", "ct2", "--quantize", "int4")
    assert (code, err.count("\n")) == (2, 1)
    assert "choose int8" in err
