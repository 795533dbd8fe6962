"""A run's student to the Hugging Face hub, only ever when asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, metadata_load
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from brim.errors import ConfigError, RunError, first_line
from brim.release.files import model_files

_ANSWERS = {
    401: "the token is not accepted; set HF_TOKEN anew, or run hf auth login",
    403: "the token may not write there; use one with write access, or another repository",
    404: "no such repository or user; check the name, and whom the token is of",
}


def describe_push(run: Path, repo: str, *, public: bool) -> tuple[list[Path], str]:
    """Return the files of `model_files`, and what would be sent, in lines for a person.

    Args:
        run: a run directory.
        repo: `user/name` on the hub.
        public: whether everyone may read it.

    Raises:
        ConfigError: the name of the repository cannot be one.
        RunError: see `model_files`.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo}: {first_line(error)}; name it as user/name") from None
    files = model_files(run)
    card = metadata_load(files[0]) or {}
    sizes = [f"{path.stat().st_size:>15,}  {name}" for name, path in _named(files)]
    says = [f"{key}: {card.get(key) or 'unknown'}" for key in ("license", "base_model", "tags")]
    to = f"to {repo} ({'public' if public else 'private'}), bytes and files:"
    return files, "\n".join([to, *sizes, f"{files[0]} says:", *(f"  {line}" for line in says)])


def push(files: Sequence[Path], repo: str, *, public: bool) -> str:
    """Send files in one commit, into a repository that is made if need be.

    Args:
        files: of `describe_push`.
        repo: `user/name` on the hub, whose address is that of `HF_ENDPOINT`.
        public: whether everyone may read it; a private repository that is there stays private.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: there is no token, or the repository is public and should not be.
        RunError: the hub refuses, or gives no answer.
    """
    if get_token() is None:
        raise ConfigError("brim push needs a token of the hub: set HF_TOKEN, or run hf auth login")
    api = HfApi()
    try:
        try:
            private = api.repo_info(repo).private
        except RepositoryNotFoundError:
            api.create_repo(repo, private=not public)
            private = not public
        if not private and not public:
            raise ConfigError(f"{repo}: everyone can read it; give --public, or another name")
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, path) for name, path in _named(files)],
            commit_message="Model and card, by brim",
        )
    except OfflineModeIsEnabled:
        raise RunError(f"{repo}: HF_HUB_OFFLINE is set; unset it to send anything") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or first_line(error)
        answer = _ANSWERS.get(status, f"{' '.join(said.split())}; try again later")
        raise RunError(f"{repo}: the hub answers {status}: {answer}") from None
    except ValueError as error:  # of the card's metadata, before anything is sent
        raise RunError(f"{files[0]}: the hub refuses it: {' '.join(str(error).split())}") from None
    except (HTTPError, OSError) as error:
        raise RunError(
            f"{repo}: no answer of {api.endpoint} ({first_line(error)}); try again later"
        ) from None
    return str(commit.commit_url)


def _named(files: Sequence[Path]) -> list[tuple[str, Path]]:
    """The files by their names in the repository; the card, which is the first, lies at its top."""
    return [(path.relative_to(files[0].parent).as_posix(), path) for path in files]
