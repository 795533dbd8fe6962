"""What plain transformers, of any version, reads and writes with saved folders.

`python plain.py REQUEST ANSWER` runs in an environment without brim; tests of the current version
call `answer`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)


def answer(folder: str, texts: list[str], prompts: list[str], max_tokens: int) -> dict[str, Any]:
    """The ids of the texts, and of each prompt the greedy tokens with their log-probabilities."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = kind.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    prompt_ids = [tokenizer(prompt).input_ids for prompt in prompts]
    written: list[list[int]] = [[]] * len(prompts)
    logprobs: list[list[float]] = [[]] * len(prompts)
    for length in set(map(len, prompt_ids)):  # together where nothing has to be padded
        rows = [row for row, ids in enumerate(prompt_ids) if len(ids) == length]
        out = model.generate(
            **tokenizer([prompts[row] for row in rows], return_tensors="pt"),
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[:, 1 if seq2seq else length :]
        scores = torch.stack(out.scores, dim=1).log_softmax(dim=-1)
        for row, tokens, values in zip(rows, ids, scores, strict=True):
            stop = next((i + 1 for i, t in enumerate(tokens.tolist()) if t in ends), max_tokens)
            written[row] = tokens[:stop].tolist()
            logprobs[row] = values[range(stop), tokens[:stop]].tolist()
    return {
        "ids": [tokenizer(text).input_ids for text in texts],
        "written": written,
        "logprobs": logprobs,
    }


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = {"version": transformers.__version__}
    for name, folder in request.pop("folders").items():
        try:
            answers[name] = answer(folder, **request)
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {error}"
    Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
