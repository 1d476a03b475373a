"""Run by test_processes: a training script on noise, started by launchers as the real ones are.

Arguments: output folder, number of updates, checkpoint to resume from if any. Of no updates the run only starts.
"""

import sys

from hf_speech_ssl.training.processes import make_accelerator
from hf_speech_ssl.training.settings import TrainingSettings


def main():
    folder, max_steps, *resume = sys.argv[1:]
    if max_steps == "0":  # spares the imports
        try:
            make_accelerator(TrainingSettings(output_dir=folder, report_to="none"))
        except ValueError as error:
            sys.exit(str(error))
        return

    import torch
    from test_loop import make_loop

    from hf_speech_ssl.scripts import call

    torch.set_num_threads(1)
    options = {"evaluator": None, "save_steps": 2, "save_total_limit": None, "mixed_precision": "no"}
    resume = resume[0] if resume else None
    call(lambda: make_loop(folder, max_steps=int(max_steps), resume_from_checkpoint=resume, **options).run())


if __name__ == "__main__":
    main()
