"""Open a page to speak into, or write it as a folder for a Space."""

from __future__ import annotations

import os
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
    labels_from: str | None = None,
) -> None:
    """Open the page and serve it until Ctrl-C; with `space_dir` write a Space folder and return.

    Args:
        model_name_or_path: folder or Hub id of a CTC model, or of a pretrained encoder or tokenizer of this package:
            its page shows pictures only.
        chunk_duration_ms: Chunk SSL: duration of a live chunk.
        host, port: where to listen.
        revision, trust_remote_code, device: as in [`Recognizer.from_pretrained`].
        space_dir: folder for the Space; the models must be on the Hub then.
        labels_from: folder or Hub id of the pretraining checkpoint or tokenizer whose labels a CTC model's page shows;
            the labels of a Chunk SSL model with FSQ are nowhere else.

    Raises:
        ImportError: gradio is not installed.
        OSError: there is no such model, or nothing can listen there.
        ValueError: the model cannot be used, has no such chunks, or is not on the Hub though a Space needs it.
    """
    _check_gradio()
    if space_dir is not None:
        from ..demo.space import write_space

        folder = write_space(
            space_dir, model_name_or_path, chunk_duration_ms, revision, trust_remote_code, labels_from
        )
        print(f"Wrote {folder}. Upload it with: hf upload --repo-type space USER/NAME {folder}")
        return
    _check_address(host, port)
    from ..demo.models import load_demo_model
    from ..demo.page import LAUNCH, build_page

    model = load_demo_model(model_name_or_path, revision, trust_remote_code, device, labels_from)
    page = build_page(model, chunk_duration_ms)
    shown_host = "localhost" if host in ("0.0.0.0", "::") else host
    _reach_without_proxy(shown_host)
    page.launch(server_name=host, server_port=port, prevent_thread_lock=True, **LAUNCH)
    print(f"Open http://{f'[{shown_host}]' if ':' in shown_host else shown_host}:{port} (Ctrl-C ends it).", flush=True)
    if host not in MICROPHONE_HOSTS:
        print("Browsers elsewhere give the microphone to pages at https:// only; uploads work anyhow.", flush=True)
    page.block_thread()


def _check_gradio() -> None:
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"The page needs gradio: pip install 'hf-speech-ssl[demo]' ({error}).") from error
    del gradio


def _reach_without_proxy(host: str) -> None:
    """Let Gradio find its own server, which it asks for its page: no proxy can lead there."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))


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
