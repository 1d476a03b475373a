"""Upload a model's folder to the Hub from the command line."""

from ..hub.push import push_folder


def push(
    folder: str, repo_id: str, revision: str | None = None, private: bool | None = None, dry_run: bool = False
) -> None:
    """Upload a folder, or list what would go up; see [`push_folder`] for the arguments and the errors."""
    print(push_folder(folder, repo_id, private=private, revision=revision, dry_run=dry_run))
