"""hf-speech-ssl probe: what each layer of an encoder, and the labels that it was pretrained on, know of the audio."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..options import LoadingOptions, ReadingOptions, argument, flag
from ..paths import check_model_folder, check_output_file

if TYPE_CHECKING:
    from ..probing.targets import TargetReader

_PHONES = "phones"  # the column that is looked for


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What is measured, on what."""

    model_name_or_path: str = argument("folder or Hub id of a pretrained encoder", "MODEL")
    test_split_name: str = flag("test", "split to measure on")
    phone_column_name: str | None = flag(None, "column with phones and their times; 'phones' if there is one")
    class_column_name: str | None = flag(
        None, "column with the class of each utterance, such as its speaker or keyword, instead of phones"
    )
    num_epochs: int = flag(10, "passes of the linear probes over the frames")
    seed: int = flag(0, "of the random weights and the probes' order")
    output_file: str | None = flag(None, "where the report is written as JSON")


def probe(options: ProbeOptions, reading: ReadingOptions, loading: LoadingOptions) -> dict[str, Any]:
    """Measure an encoder's layers and labels, print tables, and write the figures as JSON.

    Returns:
        The report: "model", "dataset", "split", "test_split", and what a [`Measurement`] returns.

    Raises:
        OSError, ValueError: no such model, data set, split or column; a column that was asked for names nothing; too
            few examples.
    """
    if options.num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {options.num_epochs}.")
    if options.phone_column_name is not None and options.class_column_name is not None:
        raise ValueError("Probes name phones or classes: give --phone_column_name or --class_column_name, not both.")
    check_model_folder(options.model_name_or_path)
    check_output_file(options.output_file)
    from ..json_files import shareable, write_json
    from ..probing.encoders import load_encoder
    from ..probing.measure import Measurement
    from ..probing.report import as_text

    measurement = Measurement(*_readers(options, reading), options.num_epochs, options.seed)
    encoder = load_encoder(options.model_name_or_path, **asdict(loading))
    report = {
        "model": options.model_name_or_path,
        "dataset": reading.dataset_name,
        "split": reading.split_name,
        "test_split": options.test_split_name,
        **measurement(encoder),
    }
    report = shareable(report)
    print(as_text(report))
    if options.output_file is not None:
        write_json(options.output_file, report)
    return report


def _readers(options: ProbeOptions, reading: ReadingOptions) -> "tuple[TargetReader, TargetReader | None]":
    """The split to measure on, and the one to fit probes on if there is something to name."""
    from ..probing.targets import ClassReader, PhoneReader, UnlabeledReader

    kind: type[PhoneReader | ClassReader] = PhoneReader if options.class_column_name is None else ClassReader
    column = options.class_column_name or options.phone_column_name
    test_split = replace(reading, split_name=options.test_split_name)
    if column is None:
        unlabeled = UnlabeledReader(test_split, optional_columns=(_PHONES,))
        if _PHONES not in unlabeled.reader.dataset.column_names:
            return unlabeled, None
        column = _PHONES
    if reading.split_name == options.test_split_name:
        raise ValueError(
            f"Probes cannot be measured on the split they are fitted on, {reading.split_name!r}; name another with "
            "--split_name or --test_split_name."
        )
    return kind(test_split, column), kind(reading, column)
