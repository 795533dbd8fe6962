"""Record what a real vLLM server answers, for the tests that have none: tests/data/vllm_*.

    python tests/record_vllm.py model FOLDER     # write the tiny teacher, and its archive
    python -m vllm.entrypoints.openai.api_server --model FOLDER --host 127.0.0.1 --port 18472 \
        --max-model-len 64 --enforce-eager --dtype float32 --served-model-name teacher \
        --max-logprobs 5
    python tests/record_vllm.py answers http://127.0.0.1:18472

The archive is the model that answered, so that a test can compare with its own passes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
ANSWERS, ARCHIVE = DATA / "vllm_answers.json.gz", DATA / "vllm_teacher.tar.gz"
PROMPTS = ([5, 6, 7], [8, 9, 260, 261, 5], [40, 41, 42, 43, 44, 45, 46, 47], [270])
READ = {"model": "teacher", "max_tokens": 1, "temperature": 0}
WRITE = {"model": "teacher", "temperature": 0, "return_token_ids": True}
AS_IDS = {"return_tokens_as_token_ids": True}

REQUESTS: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("/v1/models", None),
    ("/version", None),
    ("/health", None),
    ("/tokenize", {"model": "teacher", "prompt": "What is 12 + 7?"}),
    ("/tokenize", {"model": "teacher", "prompt": "What is 12 + 7?", "add_special_tokens": False}),
    ("/tokenize", {"model": "teacher", "prompt": " naïve → 🎈\n", "add_special_tokens": False}),
    ("/tokenize", {"model": "teacher", "prompt": "a</s>b", "return_token_strs": True}),
    ("/v1/completions", {**READ, **AS_IDS, "prompt": PROMPTS[0], "prompt_logprobs": 1}),
    ("/v1/completions", {**READ, **AS_IDS, "prompt": PROMPTS[1], "prompt_logprobs": 5}),
    ("/v1/completions", {**READ, **AS_IDS, "prompt": list(PROMPTS), "prompt_logprobs": 1}),
    (
        "/v1/completions",
        {**READ, **AS_IDS, "prompt": list(PROMPTS), "prompt_logprobs": 1, "logprobs": 1},
    ),
    ("/v1/completions", {**READ, "prompt": list(PROMPTS), "prompt_logprobs": 0}),
    ("/v1/completions", {**WRITE, **AS_IDS, "prompt": list(PROMPTS), "max_tokens": 12}),
    (
        "/v1/completions",
        {**WRITE, **AS_IDS, "prompt": PROMPTS[1], "max_tokens": 4, "logprobs": 1},
    ),
    ("/v1/completions", {**WRITE, "prompt": PROMPTS[0], "max_tokens": 8, "stop_token_ids": [1]}),
    (
        "/v1/completions",
        {**WRITE, "prompt": PROMPTS[0], "max_tokens": 4, "logit_bias": {"5": -100, "6": 3.5}},
    ),
    ("/v1/completions", {**READ, "model": "another", "prompt": PROMPTS[0], "prompt_logprobs": 1}),
    ("/v1/completions", {**READ, "prompt": [5] * 65, "prompt_logprobs": 1}),
    ("/v1/completions", {**READ, "prompt": PROMPTS[0], "prompt_logprobs": 6}),
    ("/v1/completions", {**READ, "prompt": [5, 100000], "prompt_logprobs": 1}),
    (
        "/v1/chat/completions",
        {
            "model": "teacher",
            "messages": [{"role": "user", "content": "1 + 1?"}],
            "temperature": 0,
            "max_tokens": 8,
            "seed": 0,
        },
    ),
)


def make(folder: Path) -> None:
    """Write the teacher: two layers of a random Qwen2, a BPE tokenizer with a chat template."""
    from brim.models import build_model, train_tokenizer
    from brim.tasks import WordProblems

    texts = [example.prompt for example in WordProblems().load("train")[:200]]
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    shape = {"family": "qwen2", "d_model": 32, "layers": 2, "heads": 1, "d_ff": 32}
    model = build_model(shape, tokenizer, seed=1)
    model.save(folder)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            member, data = tarfile.TarInfo(path.name), path.read_bytes()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    ARCHIVE.write_bytes(gzip.compress(packed.getvalue(), mtime=0))  # the same bytes each time


def record(url: str) -> None:
    """Write what the server answers to `REQUESTS`: path, request, status, response."""
    pairs = []
    for path, request in REQUESTS:
        data = None if request is None else json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        call = urllib.request.Request(url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(call, timeout=120) as reply:
                status, text = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        response = json.loads(text) if text else None
        pair = {"path": path, "request": request, "status": status, "response": response}
        pairs.append(pair)
        print(status, path, json.dumps(request)[:90], "->", json.dumps(response)[:300])
    ANSWERS.write_bytes(gzip.compress(json.dumps(pairs, indent=1).encode(), mtime=0))


def teacher_folder(parent: Path) -> Path:
    """Unpack the model that answered."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="vllm-teacher-"))
    with tarfile.open(ARCHIVE) as archive:
        # Python before 3.11.4 has no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[2])) if sys.argv[1] == "model" else record(sys.argv[2])
