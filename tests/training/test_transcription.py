"""Transcripts as labels: letters that a model does not know, transcripts longer than their audio."""

import math

import pytest
import torch
from accelerate import Accelerator
from test_loop import log_of, make_loop
from toys import TINY, ToyBatches, noise

from hf_speech_ssl import BiRQConfig, BiRQForCTC, SpeechSSLFeatureExtractor
from hf_speech_ssl.decoding import build_ctc_processor, build_ctc_tokenizer
from hf_speech_ssl.training.processes import Interruption
from hf_speech_ssl.training.transcription import (
    NOTHING_WRITTEN,
    TranscriptEvaluator,
    Transcription,
    check_letters,
    letters_in_words,
)

LETTERS = "abcdefgh"


@pytest.fixture(autouse=True)
def one_process():
    return Accelerator(cpu=True)


def make_objective():
    processor = build_ctc_processor([LETTERS], SpeechSSLFeatureExtractor())
    return Transcription(processor, frame_stacking=2)  # 20 ms


def tiny_ctc():
    torch.manual_seed(1)
    return BiRQForCTC(BiRQConfig(**TINY, vocab_size=11, pad_token_id=0, mask_time_prob=0.0, mask_feature_prob=0.0))


def batch_of(*texts, seconds=0.2, seed=0):
    """Utterances of 9 frames."""
    batch = noise(*[round(16_000 * seconds)] * len(texts), seed=seed)
    batch.texts, batch.names = list(texts), [f"{text}.wav" for text in texts]
    return batch


def test_transcripts_longer_than_their_audio_are_left_out_of_the_mean_and_named(caplog):
    objective, model, cpu = make_objective(), tiny_ctc().eval(), torch.device("cpu")
    model.train()
    model.config.hidden_dropout = 0.0
    torch.manual_seed(3)
    alone, units = objective(model.eval(), batch_of("abcdefgha"), cpu)
    assert units == 1 and not objective.left_out
    both = batch_of("abcdefgha", "aabbccdda")  # 9 letters and 4 blanks between equal ones
    output, units = objective(model.train(), both, cpu)
    assert units == 1 and list(objective.left_out) == ["aabbccdda.wav"]
    assert "aabbccdda.wav is left out: its transcript of 9 tokens needs 13 frames, its audio has 9" in caplog.text
    output, _ = objective(model.eval(), both, cpu)
    assert float(output["loss"]) > 0 and float(output["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)


class Mismatched(ToyBatches):
    """Transcripts of other files."""

    def infinite_batches(self, start=None):
        for number, batch in enumerate(super().infinite_batches(start)):
            yield self.with_texts(batch, number)

    def epoch(self, epoch, start=None):
        yield from (self.with_texts(batch, 0) for batch in super().epoch(epoch))

    def with_texts(self, batch, number):
        batch.texts, batch.names = [LETTERS * 9, LETTERS * 8], [f"{number}-{row}" for row in range(2)]
        return batch


@pytest.mark.parametrize(("max_steps", "message"), [(4, "None of the 4 updates"), (90, "25 updates in a row.*was 0")])
def test_a_run_all_of_whose_transcripts_are_too_long_stops(tmp_path, one_process, max_steps, message):
    objective = make_objective()
    evaluator = TranscriptEvaluator(one_process, objective, {"test": Mismatched()})
    options = {"model": tiny_ctc(), "objective": objective, "evaluator": evaluator}
    with pytest.raises(ValueError, match=rf"{message}.*All transcripts are longer .* those of 0-0, 0-1, 1-0"):
        make_loop(tmp_path, Mismatched(), max_steps=max_steps, **options).run()
    report, *_, last = log_of(tmp_path)
    assert report["left_out_utterances"] == 4
    assert max_steps > 4 or (last["eval_loss"] is None and last["eval_wer"] >= 0)


def test_unknown_letters_are_named_with_their_share_and_refused_beyond_two_percent(caplog):
    tokenizer = build_ctc_tokenizer([LETTERS])
    check_letters([LETTERS * 20, "", "a\u0301"], tokenizer, "train")
    assert "0.62 % of the letters of split 'train'" in caplog.text and "become [UNK]: \\u0301 1." in caplog.text
    with pytest.raises(ValueError, match=r"100.00 % of .* \[UNK\]: и 2, р 2, в 1, .*Give --new_vocabulary"):
        check_letters(["привет", "мир"], tokenizer, "train")


def test_a_new_vocabulary_is_shown_with_counts():
    words = letters_in_words([LETTERS * 5000, "ı\u200b"])
    assert "of 10 letters: a 5,000, " in words and words.endswith("h 5,000, ı 1, \\u200b 1.")


def test_a_split_without_words_has_no_rate(one_process):
    class Silent(Mismatched):
        def with_texts(self, batch, number):
            batch.texts = ["", ""]
            return batch

    evaluator = TranscriptEvaluator(one_process, make_objective(), {"test": Silent()})
    assert math.isnan(evaluator(tiny_ctc(), Interruption())["eval_wer"])


def test_examples_say_where_a_model_writes_nothing(one_process):
    evaluator = TranscriptEvaluator(one_process, make_objective(), {"test": Mismatched()})
    for _ in range(2):  # in two modes
        evaluator.show(["abc", "def"], ["", ""])
    assert evaluator.examples == [NOTHING_WRITTEN]
    evaluator.show(["abc"], ["ab"])
    evaluator.show([""], [""])
    assert evaluator.examples[1:] == ["  ref: abc\n  hyp: ab", "  ref: \n  hyp: "]
