import json

import pytest
from judge_server import KEY, KEY_NAME, Server, serving


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy between the tests and their server, and no settings of the client's own."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(KEY_NAME, KEY)


@pytest.fixture
def server():
    with serving(Server()) as running:
        yield running


@pytest.fixture
def write_run(tmp_path):
    """`write_run(name, texts)` makes a directory with predictions of the test split."""

    def write(name, texts, *, task="xsum", prompt="summarize: {document}", sources=None):
        directory = tmp_path / name
        (directory / "predictions").mkdir(parents=True)
        if task is not None:
            settings = {"task": {"name": task, "prompt": prompt}}
            (directory / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
        template = prompt or "{document}"
        head, tail = template.split("{document}") if "{document}" in template else ("", "")
        sources = sources or [f"Document {i}." for i in range(len(texts))]
        rows = [
            {"id": f"x{i}", "prompt": head + source + tail, "references": [], "text": text}
            for i, (source, text) in enumerate(zip(sources, texts, strict=True))
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / "predictions" / "test.jsonl").write_text(lines, encoding="utf-8")
        return directory

    return write
