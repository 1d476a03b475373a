"""Serves the page to speak into."""

from __future__ import annotations

import os
import socket

import gradio as gr

from .page import LAUNCH

MICROPHONE_HOSTS = ("localhost", "127.0.0.1", "::1")  # where browsers give it to pages without https


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serve a page until Ctrl-C."""
    shown_host = "localhost" if host in ("0.0.0.0", "::") else host
    _reach_without_proxy(shown_host)
    page.launch(server_name=host, server_port=port, prevent_thread_lock=True, **LAUNCH)
    print(f"Open http://{f'[{shown_host}]' if ':' in shown_host else shown_host}:{port} (Ctrl-C ends it).", flush=True)
    if host not in MICROPHONE_HOSTS:
        print("Browsers elsewhere give the microphone to pages at https:// only; uploads work anyhow.", flush=True)
    page.block_thread()


def check_address(host: str, port: int) -> None:
    """Refuse an address that nothing can listen at.

    Raises:
        OSError: it is in use, or is no address of this machine.
        ValueError: there is no such port.
    """
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


def _reach_without_proxy(host: str) -> None:
    """Let Gradio find its own server, which it asks for its page: no proxy can lead there."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
