"""A built data set to a hub, when there are credentials."""

from __future__ import annotations

from pathlib import Path

from visa_core.data.construction.card import read_report
from visa_core.data.schema import DataError

PATTERNS = ("README.md", "report.json", "triplets/*", "responses/*", "figures/*")
"""What is pushed: neither the cache of answers nor the raw log, which hold all that was asked."""


def push(folder: Path, repo: str, *, private: bool = True) -> str:
    """Create the data set repository where it is missing and upload the folder; returns its
    address.

    Raises DataError without a finished build, without credentials, or when the hub refuses.
    """
    read_report(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise DataError(f"--repo {repo!r} is not of the form OWNER/NAME")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not get_token():
        raise DataError(
            "no credentials for the hub: set the variable HF_TOKEN, or run hf auth login"
        )
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=list(PATTERNS),
            commit_message="Data set built by visa data build",
        )
    except OfflineModeIsEnabled:
        raise DataError(
            "the hub is switched off: unset HF_HUB_OFFLINE for visa data push"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise DataError(f"the hub refused {repo}: {str(error).splitlines()[0]}") from error
    return str(commit.repo_url if hasattr(commit, "repo_url") else repo)
