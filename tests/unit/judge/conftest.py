import pytest
from judge_server import KEY, KEY_NAME, Server, serving
from rundirs import write_run as write_files


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
        settings = {"task": {"name": task, "prompt": prompt}} if task is not None else None
        template = prompt or "{document}"
        head, tail = template.split("{document}") if "{document}" in template else ("", "")
        sources = sources or [f"Document {i}." for i in range(len(texts))]
        rows = [
            {"id": f"x{i}", "prompt": head + source + tail, "references": [], "text": text}
            for i, (source, text) in enumerate(zip(sources, texts, strict=True))
        ]
        return write_files(tmp_path / name, settings=settings, rows=rows)

    return write
