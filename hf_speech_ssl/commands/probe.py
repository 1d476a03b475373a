"""hf-speech-ssl probe: what each layer of an encoder, and the labels that it was pretrained on, know of phones."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..options import LoadingOptions, ReadingOptions, argument, flag
from ..paths import check_model_folder, check_output_file


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What is measured, on what."""

    model_name_or_path: str = argument("folder or Hub id of a pretrained encoder", "MODEL")
    test_split_name: str = flag("test", "split to measure on")
    phone_column_name: str = flag("phones", "column with phones and their times")
    num_epochs: int = flag(10, "passes of the linear probes over the frames")
    seed: int = flag(0, "of the random weights and the probes' order")
    output_file: str | None = flag(None, "where the report is written as JSON")


def probe(options: ProbeOptions, reading: ReadingOptions, loading: LoadingOptions) -> dict[str, Any]:
    """Measure an encoder's layers and labels, print tables, and write the figures as JSON.

    Returns:
        The report: "model", "dataset", "split", "test_split", and what [`measure`] returns.

    Raises:
        OSError, ValueError: no such model, data set, split or column; no phones; too few frames.
    """
    if reading.split_name == options.test_split_name:
        raise ValueError(
            f"Probes cannot be measured on the split they are fitted on, {reading.split_name!r}; name another."
        )
    if options.num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {options.num_epochs}.")
    check_model_folder(options.model_name_or_path)
    check_output_file(options.output_file)
    from ..json_files import shareable, write_json
    from ..probing.encoders import load_encoder
    from ..probing.measure import measure
    from ..probing.probe import PhoneReader, number_phones
    from ..probing.report import as_text

    train, test = (
        PhoneReader(replace(reading, split_name=name), options.phone_column_name)
        for name in (reading.split_name, options.test_split_name)
    )
    phone_ids = number_phones(train.inventory(), test.inventory())
    encoder = load_encoder(options.model_name_or_path, **asdict(loading))
    report = {
        "model": options.model_name_or_path,
        "dataset": reading.dataset_name,
        "split": reading.split_name,
        "test_split": options.test_split_name,
        **measure(encoder, train, test, phone_ids, options.num_epochs, options.seed),
    }
    report = shareable(report)
    print(as_text(report))
    if options.output_file is not None:
        write_json(options.output_file, report)
    return report
