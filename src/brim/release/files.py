"""What of a run's best checkpoint leaves this machine: the files of a model, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from brim.errors import RunError
from brim.runs.card import CARD, write_card
from brim.runs.directory import RunDirectory
from brim.support.seals import MANIFEST, find_damage, is_sealed

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "tokenizer.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"  # of a tokenizer that has several
_MODEL = re.compile(
    r"config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors"
    rf"|model\.safetensors\.index\.json|{TEMPLATES}/[^/]+\.jinja"
)
# Of the run, and left where it is: the seal, and adapters, which are merged into the weights.
_OF_THE_RUN = {MANIFEST, "adapters.safetensors"}

_SECRETS = {
    "a token of the Hugging Face hub": r"hf_[A-Za-z0-9]{20,}",
    "an API key (sk-…)": r"sk-[A-Za-z0-9_-]{20,}",
    "an AWS key": r"(AKIA|ASIA)[A-Z0-9]{16}",
    "a Google API key": r"AIza[A-Za-z0-9_-]{35}",
    "a GitHub token": r"(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a Slack token": r"xox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


def model_files(run: Path) -> list[Path]:
    """Return the files to be sent, the card first; it is written where there is none.

    Raises:
        RunError: the run is not finished or damaged, or `best/` holds other files or a secret.
    """
    directory = RunDirectory(run)
    directory.check()
    directory.check_best()
    if stop := directory.results(directory.tests()[0]).stopped_at:
        raise RunError(f"{run}: its training has not ended ({stop}); finish it by brim train")
    best = run / "best"
    damage = find_damage(best) if is_sealed(best) else None
    if damage is not None:
        raise RunError(f"{best}: damaged: {damage}; start again the brim train that wrote it")
    if not (best / CARD).exists():
        write_card(run)
    files = [best / CARD]
    for path in sorted(best.rglob("*")):
        name = path.relative_to(best).as_posix()
        if name in TOKENIZER or _MODEL.fullmatch(name):
            files.append(path)
        elif path.is_file() and name not in (*_OF_THE_RUN, CARD):
            raise RunError(
                f"{path}: is no file of a model (data and code are never sent); "
                "move it out of best/"
            )
    for path in files:
        for line, kind in _secrets(path):
            raise RunError(f"{path}:{line}: looks like {kind}; remove it, and revoke it")
    return files


def _secrets(path: Path) -> Iterator[tuple[int, str]]:
    """Line and kind of what looks like a secret in a text, or in the header of weights."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            raw = file.read(int.from_bytes(file.read(8), "little"))
        else:
            raw = file.read()
    text = raw.decode("utf-8", errors="replace")
    for kind, pattern in _SECRETS.items():
        if match := re.search(rf"(?<![A-Za-z0-9])(?:{pattern})", text):
            yield text.count("\n", 0, match.start()) + 1, kind
