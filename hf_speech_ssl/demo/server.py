"""Serves the page to speak into."""

from __future__ import annotations

import os

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


def _reach_without_proxy(host: str) -> None:
    """Let Gradio find its own server, which it asks for its page: no proxy can lead there."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
