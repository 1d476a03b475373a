"""Uploads a model's folder to the Hub, as one commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .contents import Contents, contents, is_upload


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> str:
    """Upload the files of a model's folder that [`contents`] selects to the Hub.

    It is one commit, so that nobody ever finds half a model. What an interrupted upload has sent of the weights is not
    sent again by the next one, and unchanged files are never sent again.

    Args:
        repo_id: `user/name`, or a name alone for the user's own; the repository is made if it is new.
        private: visibility of a new repository; the account's default if `None`.
        revision: a branch to upload to, made if it is new. It will hold this model alone: what other models left there
            (weights, code, results, card) is deleted from the branch. On the main branch nothing is deleted.
        dry_run: make no request.

    Returns:
        The address; of a dry run, the list of what would be uploaded and what withheld.

    Raises:
        ValueError: an impossible `repo_id`, no whole model in the folder, or something private in it.
        OSError: the Hub cannot be reached, does not know the token or grants it no right to write.
    """
    folder = Path(folder)
    check_name(repo_id)
    found = contents(folder, repo_id, revision)
    if dry_run:
        return str(found)
    check_login()
    with _explained_errors(folder, repo_id, revision):
        return _upload(folder, found, repo_id, private, revision)


def check_name(repo_id: str) -> None:
    """Raise a ValueError if a repository cannot have this name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository, give user/name: {error}") from error


def check_login() -> None:
    """Raise an OSError if there is no access token."""
    if get_token() is None:
        raise OSError(
            "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write."
        )


def _upload(folder: Path, found: Contents, repo_id: str, private: bool | None, revision: str | None) -> str:
    api = HfApi()
    repository = api.create_repo(repo_id, private=private, exist_ok=True)
    if repository.repo_id != repo_id:  # the user's own: now the card can name the user
        found = contents(folder, repository.repo_id, revision)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(upload.path, upload.source) for upload in found.uploads
    ]
    if revision is not None and revision != "main":
        api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
        kept = {upload.path for upload in found.uploads}
        there = api.list_repo_files(repository.repo_id, revision=revision)
        operations += [CommitOperationDelete(path) for path in there if path not in kept and is_upload(path)]
    api.create_commit(repository.repo_id, operations, commit_message="Upload model", revision=revision)
    return str(repository) + (f"/tree/{revision}" if revision else "")


@contextmanager
def _explained_errors(folder: Path, repo_id: str, revision: str | None) -> Iterator[None]:
    """Raise what goes wrong between here and the Hub as an OSError of one line that says what to do."""
    again = f"hf-speech-ssl push {folder} {repo_id}" + (f" --revision {revision}" if revision else "")
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise OSError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it, then: {again}") from error
    except HfHubHTTPError as error:
        _refused(error, repo_id, again)
    except (HTTPError, RuntimeError, OSError) as error:  # a RuntimeError tells of one file that did not get through
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            _refused(cause, repo_id, again)
        where = str(error) + " " if cause is not error else ""
        raise OSError(
            f"{where}The connection to the Hub failed ({type(cause).__name__}: {cause}). What has arrived is not sent "
            f"again: repeat {again}"
        ) from error


def _refused(error: HfHubHTTPError, repo_id: str, again: str) -> NoReturn:
    status = error.response.status_code
    if status == 401:
        raise OSError(
            "The Hub does not accept your token (401): run `hf auth login`, or set HF_TOKEN to a valid token that may "
            f"write. Then: {again}"
        ) from error
    if status == 403:
        raise OSError(
            f"Your token has no right to write to {repo_id} (403): take a repository of your own or of your "
            f"organization, or log in (`hf auth login`) with a token that may write there."
        ) from error
    words = error.server_message or str(error).strip().splitlines()[0]
    raise OSError(f"The Hub refused the upload to {repo_id} ({status}): {words}. Repeat later: {again}") from error
