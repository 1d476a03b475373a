"""hf-speech-ssl evaluate: error rates of a model on a data set, or BLEU of its translations, offline and in chunks."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ..json_files import shareable
from ..options import DecodingOptions, LoadingOptions, ReadingOptions, argument, flag
from ..paths import check_file, check_model_folder, check_output_file, make_output_folder
from ..run_folder import Evaluation

_FEW_RESAMPLES = 100  # with fewer, 2.5 % of them is a matter of two or three


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is measured, and what is reported."""

    model_name_or_path: str = argument(
        "folder or Hub id of any CTC model, or of a transducer of this package", "MODEL"
    )
    text_column_name: str = flag("text", "column with the transcripts")
    translation_column_name: str | None = flag(
        None,
        "column with translations, instead of the transcripts: BLEU, chrF and, in chunks, AL, LAAL and YAAL (extra "
        "translation); texts are compared as they are",
    )
    instance_log_dir: str | None = flag(
        None, "with translations: a folder for an instances.log per mode, which SimulEval and OmniSTEval score"
    )
    speaker_column_name: str = flag("speaker_id", "column with the speakers, if there is one")
    chunk_durations_ms: list[int] = flag([], "Chunk SSL: also in chunks of these durations", "MS")
    latency: bool = flag(False, "measure how late the text of live streams is, in chunks of --chunk_durations_ms")
    words_column_name: str = flag("words", "column with words and their times, if there is one, for --latency")
    normalize_text: bool = flag(True, "normalize references and hypotheses before they are compared")
    num_worst: int = flag(10, "utterances shown with the most word errors")
    num_resamples: int = flag(1000, "bootstrap resamples that the intervals come from; 0 for no intervals")
    output_file: str | None = flag(None, "where the report is written as JSON")

    def __post_init__(self) -> None:
        few = 0 < self.num_resamples < _FEW_RESAMPLES
        if self.num_worst < 0 or self.num_resamples < 0 or few:
            raise ValueError(
                f"num_worst must be 0 or more, num_resamples 0 (no intervals) or at least {_FEW_RESAMPLES}; got "
                f"{self.num_worst} and {self.num_resamples}."
            )
        if self.latency and not self.chunk_durations_ms:
            raise ValueError("--latency is that of live streams: give --chunk_durations_ms, such as 320.")
        if self.latency and self.translation_column_name:
            raise ValueError(
                "--latency compares words with those that are said. Translations in chunks have their lagging without "
                "it: leave --latency out."
            )
        if self.instance_log_dir is not None and self.translation_column_name is None:
            raise ValueError("--instance_log_dir is for translations: give --translation_column_name, too.")


def evaluate(
    options: EvaluateOptions, reading: ReadingOptions, loading: LoadingOptions, decoding: DecodingOptions
) -> Evaluation:
    """Transcribe a split, print error rates, speakers and the worst utterances, and write them as JSON.

    Returns:
        The report; its settings hold the options.

    Raises:
        ImportError: translations are to be scored without sacrebleu.
        OSError, ValueError: no such model, data set, split, column or file, or one that cannot be used.
    """
    check_model_folder(options.model_name_or_path)
    for path in (decoding.lm_path, decoding.lexicon_path):
        check_file(path)
    check_output_file(options.output_file)
    make_output_folder(options.instance_log_dir)
    from ..data.reading import UtteranceReader
    from ..evaluation.instances import write_instances
    from ..evaluation.report import as_text
    from ..evaluation.translation import load_metrics
    from ..recognition.evaluation import CorpusEvaluator
    from ..recognition.recognizer import Recognizer
    from ..recognition.translation import TranslationEvaluator

    if options.translation_column_name is not None:
        load_metrics()
    recognizer = Recognizer.from_pretrained(options.model_name_or_path, **asdict(loading))
    decoder = recognizer.make_decoder(decoding)
    speakers, words = options.speaker_column_name, options.words_column_name if options.latency else None
    translations = options.translation_column_name
    column, normalize = translations or options.text_column_name, options.normalize_text and translations is None
    evaluator_class = CorpusEvaluator if translations is None else TranslationEvaluator
    evaluator = evaluator_class(recognizer, decoder, options.chunk_durations_ms, speakers, normalize, words)
    reader = UtteranceReader(reading, column, optional_columns=[speakers, *filter(None, [words])])
    figures = evaluator.report(reader, options.num_worst, options.num_resamples)
    asked = asdict(reading) | asdict(decoding)
    names = ("text_column_name", "translation_column_name", "speaker_column_name")
    asked |= {name: getattr(options, name) for name in names}
    asked["revision"] = loading.revision
    figures["settings"] |= {name: value for name, value in asked.items() if name not in ("dataset_name", "split_name")}
    what = {"model": options.model_name_or_path, "dataset": reading.dataset_name, "split": reading.split_name}
    evaluation = Evaluation(**shareable(what | figures))
    print(as_text(evaluation))
    if options.output_file is not None:
        evaluation.write(options.output_file)
    if options.instance_log_dir is not None:
        for mode, instances in getattr(evaluator, "instances", {}).items():
            write_instances(Path(options.instance_log_dir) / mode.replace(" ", ""), instances)
    return evaluation
