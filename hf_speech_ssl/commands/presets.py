"""hf-speech-ssl presets: the page of the published configurations."""

from dataclasses import dataclass

from ..options import flag


@dataclass(frozen=True)
class PresetsOptions:
    """Where the page goes."""

    output_file: str | None = flag(None, "Markdown file to write; standard output by default")


def presets(options: PresetsOptions) -> None:
    """Write the page of all presets."""
    from ..hub.presets import presets_page
    from ..json_files import write_text

    if options.output_file is None:
        print(presets_page(), end="")
    else:
        write_text(options.output_file, presets_page())
