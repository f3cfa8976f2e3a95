"""Soft tokens on the Hugging Face hub, in one commit."""

from __future__ import annotations

import json

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from softrepa_pipeline.publishing.model_card import TOKENS_FILE, Published, model_card


def files_to_push(published: Published, repo: str, data_licence: str | None = None) -> dict[str, bytes]:
    """Name and content of all that is pushed: the tokens, their card and, where there is one, their evaluation.

    Raises:
        ValueError: `repo` is not the name of a repository.
    """
    _check(repo)
    contents = {
        "README.md": model_card(published, repo, data_licence).encode(),
        TOKENS_FILE: published.file.read_bytes(),
    }
    if published.evaluation is not None:
        contents["evaluation.json"] = (json.dumps(published.evaluation, indent=2) + "\n").encode()
    return contents


def push(contents: dict[str, bytes], repo: str) -> str:
    """Make the repository where it is not there and commit the files to it, all or none; returns the commit's address.

    Raises:
        ValueError: no token for the hub is set.
        OSError: the hub is out of reach, or refuses.
    """
    token = get_token()
    if token is None:
        raise ValueError("no token for the hub: set HF_TOKEN, or run `hf auth login`; --dry-run needs none")
    api = HfApi(token=token)
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Soft tokens, their card and their evaluation")
    except HTTPError as error:
        raise OSError(f"{repo} was not pushed: {error}") from error
    return str(commit.commit_url)


def _check(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--repo {repo}: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"--repo must be OWNER/NAME, not {repo!r}")
