"""Open a page to speak into, or write it as a folder for a Space."""

from __future__ import annotations

import socket

MICROPHONE_HOSTS = ("localhost", "127.0.0.1", "::1")  # where browsers give it to pages without https


def demo(
    model_name_or_path: str,
    chunk_duration_ms: int = 320,
    host: str = "127.0.0.1",
    port: int = 7860,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    space_dir: str | None = None,
) -> None:
    """Open the page and serve it until Ctrl-C; with `space_dir` write a Space folder and return.

    Args:
        model_name_or_path: folder or Hub id of a CTC model, or of a pretrained encoder of this package: its page shows
            pictures only.
        chunk_duration_ms: Chunk SSL: duration of a live chunk.
        host, port: where to listen.
        revision, trust_remote_code, device: as in [`Recognizer.from_pretrained`].
        space_dir: folder for the Space; the model must be on the Hub then.

    Raises:
        ImportError: gradio is not installed.
        OSError: there is no such model, or nothing can listen there.
        ValueError: the model cannot be used, has no such chunks, or is not on the Hub though a Space needs it.
    """
    _check_gradio()
    if space_dir is not None:
        from ..demo.space import write_space

        folder = write_space(space_dir, model_name_or_path, chunk_duration_ms, revision, trust_remote_code)
        print(f"Wrote {folder}. Upload it with: hf upload --repo-type space USER/NAME {folder}")
        return
    _check_address(host, port)
    from ..demo.models import load_demo_model
    from ..demo.page import LAUNCH, build_page

    page = build_page(load_demo_model(model_name_or_path, revision, trust_remote_code, device), chunk_duration_ms)
    shown_host = "localhost" if host in ("0.0.0.0", "::") else host
    print(f"Open http://{shown_host}:{port} (Ctrl-C ends it).", flush=True)
    if host not in MICROPHONE_HOSTS:
        print("Browsers elsewhere give the microphone to pages at https:// only; uploads work anyhow.", flush=True)
    page.launch(server_name=host, server_port=port, **LAUNCH)


def _check_gradio() -> None:
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"The page needs gradio: pip install 'hf-speech-ssl[demo]' ({error}).") from error
    del gradio


def _check_address(host: str, port: int) -> None:
    """Raise OSError, in words, if nothing can listen there: before a model is loaded for it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OverflowError as error:
        raise ValueError(f"There is no port {port}; ports are numbers up to 65535.") from error
    except OSError as error:
        raise OSError(
            f"Nothing can listen at {host}, port {port} ({error.strerror or error}); is another page open there? "
            "Choose another --port or --host."
        ) from error
