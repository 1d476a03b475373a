"""hf-speech-ssl demo: a page to speak into, here or as a folder for a Space."""

from dataclasses import asdict, dataclass

from ..options import LoadingOptions, argument, flag
from ..paths import check_model_folder


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Which models the page shows, and where."""

    model_name_or_path: str = argument("folder or Hub id of a CTC model, or of an encoder", "MODEL")
    chunk_duration_ms: int = flag(320, "Chunk SSL: duration of a live chunk")
    labels_from: str | None = flag(None, "pretraining checkpoint or tokenizer whose labels the pictures show")
    host: str = flag("127.0.0.1", "address to listen at; 0.0.0.0 for all")
    port: int = flag(7860, "port to listen at")
    space_dir: str | None = flag(None, "write the page as a Space folder there instead of opening it")


def demo(options: DemoOptions, loading: LoadingOptions) -> None:
    """Open the page and serve it until Ctrl-C; with `space_dir` write a Space folder and return.

    Raises:
        ImportError: gradio is not installed.
        OSError: there is no such model, or nothing can listen there.
        ValueError: the model cannot be used, has no such chunks, or is not on the Hub though a Space needs it.
    """
    if options.space_dir is None:
        check_model_folder(options.model_name_or_path)
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f"The page needs gradio: pip install 'hf-speech-ssl[demo]' ({error}).") from error
    del gradio
    if options.space_dir is not None:
        from ..demo.space import write_space

        folder = write_space(
            options.space_dir,
            options.model_name_or_path,
            options.chunk_duration_ms,
            loading.revision,
            loading.trust_remote_code,
            options.labels_from,
        )
        print(f"Wrote {folder}. Upload it with: hf upload --repo-type space USER/NAME {folder}")
        return
    from ..demo.models import load_demo_model
    from ..demo.page import build_page
    from ..demo.server import serve
    from ..serving.address import check_address

    check_address(options.host, options.port)  # before a model is loaded for it
    model = load_demo_model(options.model_name_or_path, **asdict(loading), labels_from=options.labels_from)
    serve(build_page(model, options.chunk_duration_ms), options.host, options.port)
