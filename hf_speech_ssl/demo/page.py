"""The page: a recording to upload or to make, the live microphone where a model works in chunks, and pictures."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from ..data.audio import SAMPLING_RATE, load_audio
from .live import MAX_SECONDS as MAX_LIVE_SECONDS
from .live import LiveTranscripts
from .masked_prediction import PretrainingTask
from .models import DemoModel
from .pictures import draw_masked_prediction, draw_recording
from .timed_transcript import TimedTranscript, transcribe_with_times
from .words import MAX_SECONDS, in_minutes, in_words, introduction, recording_caption, task_caption

MAX_FILE_SIZE = "200mb"  # two minutes of the largest formats in use; more is not even stored
KEEP_SECONDS = 3600  # uploaded files are deleted after that
WARNING_SECONDS = 20.0  # that a message stays
SYSTEM_FONTS = tuple(gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "sans-serif"))
MONO_FONTS = tuple(gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace"))


def _asset(name: str) -> str:
    """The text of a file beside this one."""
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


# How the page is opened: fonts that every system has, and nothing fetched from or told to anybody else.
LAUNCH: dict[str, Any] = {
    "share": False,
    "quiet": True,
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "max_file_size": MAX_FILE_SIZE,
    # Gradio would ask its own page once more, and give up after 3 s; that the server answers it has seen by then.
    "_frontend": False,
    "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=MONO_FONTS),
    "css": _asset("page.css"),
}
Waveform: TypeAlias = NDArray[np.float32]


def build_page(model: DemoModel, chunk_duration_ms: int = 320) -> gr.Blocks:
    """The page for a model.

    Raises:
        ValueError: a Chunk SSL model has no such chunks.
    """
    live = None
    if model.recognizer is not None and model.recognizer.works_in_chunks:
        live = LiveTranscripts(model.recognizer, chunk_duration_ms)
    with gr.Blocks(title=f"Speak to {model.name}", analytics_enabled=False, delete_cache=(600, KEEP_SECONDS)) as page:
        gr.Markdown(introduction(model, chunk_duration_ms))
        if live is None:
            _recording_part(model, chunk_duration_ms)
        else:
            with gr.Tabs():
                with gr.Tab("Live"):
                    _live_part(model, live, chunk_duration_ms)
                with gr.Tab("Recording"):
                    _recording_part(model, chunk_duration_ms)
    page.queue(default_concurrency_limit=1, api_open=False)
    return page


def _live_part(model: DemoModel, live: LiveTranscripts, chunk_duration_ms: int) -> None:
    """Recorder, and pictures of the recording once it has stopped."""
    recognizer = model.recognizer
    assert recognizer is not None  # only a recognizer is live

    def accept_block(
        message: Any,
    ) -> dict[str, Any]:  # Gradio marks it as a function of the page, which no method bears
        return live.accept(message)

    recorder = gr.HTML(
        html_template=_asset("recorder.html"),
        css_template=_asset("recorder.css"),
        js_on_load=_asset("recorder.js"),
        apply_default_css=False,
        server_functions=[accept_block],
        elem_id="recorder",
    )
    gr.Markdown(f"Underlined words may still change. A recording ends after {in_minutes(MAX_LIVE_SECONDS)}.")
    pictures = _Pictures(model, f"in chunks of {chunk_duration_ms} ms, as live")

    def show(event: gr.EventData) -> list[Any]:
        waveform = live.samples(str(event.recording))
        if waveform is None:
            return pictures.nothing()
        try:
            return pictures.show(waveform, transcribe_with_times(recognizer, waveform, chunk_duration_ms))
        except ValueError:  # shorter than a frame: there is nothing to see
            return pictures.nothing()

    recorder.submit(show, None, pictures.outputs, api_visibility="private", show_progress="hidden")
    recorder.clear(pictures.nothing, None, pictures.outputs, api_visibility="private", show_progress="hidden")


def _recording_part(model: DemoModel, chunk_duration_ms: int) -> None:
    """A file or the microphone, the transcript, and the pictures."""
    recognizer = model.recognizer
    sources: list[Any] = ["microphone", "upload"]
    if recognizer is not None and recognizer.works_in_chunks:
        sources.reverse()  # the other tab is for speaking
    audio = gr.Audio(
        sources=sources,
        type="filepath",
        label=f"Your recording, {in_minutes(MAX_SECONDS)} at most",
        buttons=[],
        editable=False,
    )
    if importlib.util.find_spec("espeakng_loader"):
        with gr.Row():
            example = gr.Button("Take a synthetic example", size="sm", scale=0, min_width=200)
        example.click(_example, None, audio, api_visibility="private", show_progress="hidden")
    inputs: list[Any] = [audio]
    outputs: list[Any] = [audio]
    if recognizer is not None:
        choices = [("the whole recording", 0), (f"chunks of {chunk_duration_ms} ms, as live", chunk_duration_ms)]
        inputs.append(
            gr.Radio(choices, value=0, label="Transcribe", visible=recognizer.works_in_chunks, elem_id="mode")
        )
        outputs.append(
            gr.Textbox(
                label="Transcript",
                placeholder="The words of the recording.",
                lines=2,
                interactive=False,
                buttons=["copy"],
                elem_classes="recording-text",
            )
        )
    pictures = _Pictures(model)

    def listen(path: str | None, chunks: int = 0) -> list[Any]:
        nothing = [None, *([""] if recognizer is not None else []), *pictures.nothing()]
        if path is None:
            return nothing
        try:
            waveform = load_audio(path, name=Path(path).name, max_seconds=MAX_SECONDS)
            transcript = None if recognizer is None else transcribe_with_times(recognizer, waveform, chunks)
            shown = pictures.show(waveform, transcript)
        except (OSError, ValueError) as error:
            gr.Warning(f"This recording cannot be used: {in_words(error)}", duration=WARNING_SECONDS)
            return nothing
        text = [] if transcript is None else [transcript.text or "(no words were recognized)"]
        return [gr.skip(), *text, *shown]

    outputs += pictures.outputs
    events = [one.change for one in inputs]
    gr.on(
        events, listen, inputs, outputs, api_visibility="private", show_progress="minimal", trigger_mode="always_last"
    )


def _example() -> tuple[int, Waveform]:
    """A sentence that synthetic models have not been trained on."""
    from ..data.synthetic.utterances import Recipe, utterance

    row = utterance(Recipe("test", "small", seed=0, noise_snr_db=None, reverberation=False), random.randrange(10_000))
    return SAMPLING_RATE, load_audio(row["audio"])


class _Pictures:
    """The pictures of a recording, hidden until there is one.

    Args:
        model: for its task.
        how: how the recording was transcribed, where there are several ways.
    """

    def __init__(self, model: DemoModel, how: str = ""):
        self.model, self.how = model, how
        style: dict[str, Any] = {
            "format": "png",
            "show_label": False,
            "elem_classes": "picture",
            "interactive": False,
            "buttons": [],
        }
        self.waveform = gr.State(None, time_to_live=KEEP_SECONDS)
        with gr.Column(visible=False) as self.column:
            gr.Markdown("### The recording")
            self.recording = gr.Image(alt_text="Waveform and spectrogram with words at their times", **style)
            gr.Markdown(recording_caption(model, how))
            if model.task is not None:
                self._task_part(model.task, style)
        self.outputs: list[Any] = [self.column, self.waveform, self.recording]
        if model.task is not None:
            self.outputs += [self.masked, self.caption]

    def _task_part(self, task: PretrainingTask, style: dict[str, Any]) -> None:
        """The place of the task's picture, and a button for another draw where there is one."""
        gr.Markdown("### What pretraining would ask of it" if task.masks else "### Its labels")
        covered = " with the masked frames covered" if task.masks else ""
        self.masked = gr.Image(alt_text=f"Spectrogram{covered}, and labels", **style)
        self.caption = gr.Markdown()
        if not task.masks:
            return
        with gr.Row():
            again = gr.Button("Mask other frames", size="sm", scale=0, min_width=200)
        drawn = [self.masked, self.caption]
        again.click(self._draw_again, self.waveform, drawn, api_visibility="private", show_progress="hidden")

    def nothing(self) -> list[Any]:
        """Values of the outputs that hide the pictures."""
        return [gr.Column(visible=False), *[None] * (len(self.outputs) - 1)]

    def show(self, waveform: Waveform, transcript: TimedTranscript | None) -> list[Any]:
        """Values of the outputs for a recording."""
        values = [gr.Column(visible=True), waveform, draw_recording(waveform, transcript)]
        return values if self.model.task is None else values + self._task(waveform, seed=0)

    def _task(self, waveform: Waveform, seed: int) -> list[Any]:
        assert self.model.task is not None  # there is no place for its picture otherwise
        task = self.model.task(waveform, seed)
        return [draw_masked_prediction(waveform, task), task_caption(task)]

    def _draw_again(self, waveform: Waveform | None) -> list[Any]:
        if waveform is None:
            gr.Warning("The recording has been deleted meanwhile; make it again.")
            return [gr.skip(), gr.skip()]
        return self._task(waveform, random.randrange(2**31))
