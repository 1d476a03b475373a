"""hf-speech-ssl push: upload a model's folder to the Hub."""

from dataclasses import dataclass

from ..options import argument, flag
from ..paths import check_folder


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What is uploaded, and where to."""

    folder: str = argument("a run's output folder", "FOLDER")
    repo_id: str = argument("user/name on the Hub", "REPO")
    revision: str | None = flag(None, "branch to upload to, made if it is new; the main branch by default")
    private: bool | None = flag(None, "make a new repository private")
    dry_run: bool = flag(False, "list the files to upload, and upload nothing")


def push(options: PushOptions) -> None:
    """Upload a folder, or list its files to upload; errors as in [`push_folder`]."""
    check_folder(options.folder)
    from ..hub.push import push_folder

    print(
        push_folder(
            options.folder,
            options.repo_id,
            private=options.private,
            revision=options.revision,
            dry_run=options.dry_run,
        )
    )
