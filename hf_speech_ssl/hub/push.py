"""The upload of a run's folder to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi


def push_folder(folder: str | Path, repo_id: str, private: bool | None = None) -> str:
    """Upload a run's final model to the Hub, its checkpoints left behind; returns the address.

    Args:
        private: of a new repository; the account's default if `None`.
    """
    api = HfApi()
    repository = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository.repo_id, folder_path=folder, ignore_patterns=["checkpoint-*", ".*", "*.partial"]
    )
    return str(repository)
