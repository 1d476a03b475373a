"""The page in headless Chromium: speech into the page's recorder, a fake microphone, and an upload."""

import base64
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from test_demo import CHUNK_MS, birq_ctc, chunkssl_ctc, pcm, save  # noqa: E402

from hf_speech_ssl.demo import page as page_module  # noqa: E402
from hf_speech_ssl.demo.live import LiveTranscripts  # noqa: E402
from hf_speech_ssl.demo.models import load_demo_model  # noqa: E402
from hf_speech_ssl.recognition.recognizer import Recognizer  # noqa: E402
from hf_speech_ssl.recognition.streaming import StreamingTranscriber  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream
""".split()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
SECONDS, RATE = 4.0, 48_000
SHOWN = "[...document.querySelectorAll('#recorder .final, #recorder .tentative')].map(x => x.textContent).join('')"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """What the fake microphone plays: half a second of silence, then babble."""
    file = tmp_path_factory.mktemp("spoken") / "spoken.wav"
    samples = np.concatenate([np.zeros(8000, dtype=np.int16), pcm(SECONDS)])
    soundfile.write(file, np.repeat(samples, RATE // 16_000), RATE, subtype="PCM_16")
    return file


@pytest.fixture(scope="module")
def received() -> list[dict]:
    """The messages that reached the server."""
    return []


@contextmanager
def served(recognizer: Recognizer, folder: Path) -> Iterator[str]:
    """The address of a model's page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = page_module.build_page(load_demo_model(str(save(recognizer, folder))), CHUNK_MS)
    page.launch(prevent_thread_lock=True, server_port=port, **page_module.LAUNCH)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, received):
    accept = LiveTranscripts.accept

    def listen(self, message):
        received.append(message)
        return accept(self, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveTranscripts, "accept", listen)
        with served(chunkssl_ctc(), tmp_path_factory.mktemp("model") / "tiny") as address:
            yield address


@pytest.fixture
def tab(address, spoken):
    """The page in a fresh browser; its requests to other places fail the test."""
    elsewhere = []
    with playwright.sync_playwright() as driver:
        microphone = f"--use-file-for-fake-audio-capture={spoken}%noloop"
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, microphone])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.on(
            "request",
            lambda one: (
                None if one.url.startswith(("http://127.0.0.1:", "data:", "blob:")) else elsewhere.append(one.url)
            ),
        )
        tab = context.new_page()
        tab.goto(address)
        yield tab
        browser.close()
    assert elsewhere == []


def samples_of(messages: list[dict]) -> np.ndarray:
    return np.concatenate([np.frombuffer(base64.b64decode(one["samples"]), dtype="<i2") for one in messages])


def lose_an_answer(tab, number: int) -> None:
    """Let one block reach the server, and its answer be lost on the way back."""
    calls = []

    def pass_on(route):
        calls.append(route)
        if len(calls) == number + 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    tab.route("**/component_server/", pass_on)


def speak(tab, samples: np.ndarray) -> None:
    """Let the page hear these samples instead of its microphone, which drops some where the processor is busy."""
    tab.evaluate(
        """samples => {
            const listen = AudioContext.prototype.createMediaStreamSource;
            AudioContext.prototype.createMediaStreamSource = function (stream) {
                listen.call(this, stream);
                const buffer = this.createBuffer(1, samples.length, this.sampleRate);
                buffer.copyToChannel(Float32Array.from(samples, one => one / 32767), 0);
                const source = new AudioBufferSourceNode(this, { buffer });
                source.onended = () => { window.spoken = true; };
                source.start();
                return source;
            };
        }""",
        samples.tolist(),
    )


def answer_the_stop_late(tab) -> None:
    """Let the audio thread hear of the stop after two seconds, as where the processor is busy."""
    tab.evaluate(
        """() => {
            const post = MessagePort.prototype.postMessage;
            MessagePort.prototype.postMessage = function (...message) {
                setTimeout(() => post.apply(this, message), message[0] === 'stop' ? 2000 : 0);
            };
        }"""
    )


def test_live_text_grows_and_is_that_of_all_that_was_said(tab, received, spoken):
    received.clear()
    said, _ = soundfile.read(spoken, dtype="int16")
    speak(tab, said)
    lose_an_answer(tab, number=3)
    answer_the_stop_late(tab)
    tab.get_by_role("button", name="Start speaking").click()
    tab.wait_for_function(f"() => {SHOWN} !== ''", timeout=20_000)
    early = tab.evaluate(f"() => {SHOWN}")
    tab.wait_for_function("() => window.spoken", timeout=60_000)
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_role("button", name="Start speaking").wait_for()
    text = tab.evaluate(f"() => {SHOWN}")
    assert len(text) > len(early) > 0 and tab.locator("#recorder .tentative").inner_text() == ""

    numbers = [one["number"] for one in received]
    once = [one for index, one in enumerate(received) if one["number"] not in numbers[:index]]
    assert numbers.count(3) == 2 and len(received) == len(once) + 1
    assert [one["number"] for one in once] == list(range(len(once))) and once[-1]["last"]
    samples, rate = samples_of(once), once[0]["rate"]
    recognizer = chunkssl_ctc()
    transcriber = StreamingTranscriber(recognizer.model, recognizer.processor, CHUNK_MS)
    transcriber.accept(samples, rate)
    assert text == transcriber.finish()

    np.testing.assert_array_equal(np.trim_zeros(samples), np.trim_zeros(said))
    tab.locator(".picture img").first.wait_for(timeout=20_000)


def test_an_upload_is_transcribed_and_drawn(tab, spoken):
    tab.get_by_role("tab", name="Recording").click()
    tab.locator("input[type=file]").set_input_files(spoken)
    text = tab.locator(".recording-text textarea:visible")
    tab.wait_for_function(
        "() => [...document.querySelectorAll('.recording-text textarea')].some(one => one.value.length > 3)"
    )
    assert " " in text.input_value()
    pictures = tab.locator(".picture img:visible")
    pictures.nth(1).wait_for(timeout=20_000)
    assert pictures.count() == 2
    before = pictures.nth(1).get_attribute("src")
    tab.get_by_role("button", name="Mask other frames").locator("visible=true").click()
    tab.wait_for_function(
        "before => [...document.querySelectorAll('.picture img')].every(one => one.src !== before)", arg=before
    )


def test_a_file_that_is_no_audio_is_refused_in_words(tab, tmp_path):
    (tmp_path / "notes.wav").write_text("shopping list")
    tab.get_by_role("tab", name="Recording").click()
    tab.locator("input[type=file]").set_input_files(tmp_path / "notes.wav")
    tab.get_by_text("This recording cannot be used").wait_for(timeout=20_000)


def test_small_screens_scroll_the_picture_and_not_the_page(tab, spoken):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.get_by_role("tab", name="Recording").click()
    tab.locator("input[type=file]").set_input_files(spoken)
    picture = tab.locator(".picture img:visible").first
    picture.wait_for(timeout=20_000)
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
    left, width = tab.evaluate(
        "one => { const box = one.getBoundingClientRect(); return [box.left, box.width]; }", picture.element_handle()
    )
    assert left >= 0 and width > 700


def test_a_forbidden_microphone_is_told_and_can_be_allowed(tab):
    tab.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError')) }"
    )
    tab.get_by_role("button", name="Start speaking").click()
    tab.get_by_text("The microphone is not allowed").wait_for()
    assert tab.get_by_role("button", name="Start speaking").is_enabled()


def test_a_model_that_hears_whole_recordings_writes_after_the_stop(tab, tmp_path):
    with served(birq_ctc(), tmp_path / "birq") as address:
        tab.goto(address)
        assert tab.locator("#recorder").count() == 0
        tab.get_by_role("button", name="Record", exact=True).click()
        tab.wait_for_timeout(2500)
        tab.get_by_role("button", name="Stop").first.click()
        tab.locator(".picture img:visible").nth(1).wait_for(timeout=20_000)
        assert tab.locator(".recording-text textarea").input_value() != ""
