"""`python -m hf_speech_ssl.hub RUN...` writes the curves and the card of a run anew, as after an evaluation of it."""

import argparse
import sys

from .card import write_model_card
from .curves import draw_training_curves


def main(argv: list[str] | None = None) -> int:
    """Curves and card of each folder; what is missing in one is said in a line."""
    parser = argparse.ArgumentParser(prog="python -m hf_speech_ssl.hub", description="Write cards of runs anew.")
    parser.add_argument("folders", nargs="+", metavar="RUN", help="output folder of a finished run")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, as the Hub abbreviates it")
    parser.add_argument("--language", nargs="+", help="what was spoken, as ISO 639 codes: en de")
    arguments = parser.parse_args(argv)
    for folder in arguments.folders:
        try:
            draw_training_curves(folder)
            write_model_card(folder, arguments.license, arguments.language)
        except (OSError, ValueError) as error:
            print(f"hf_speech_ssl.hub: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
