"""Run by test_loop in a process of its own: a run that only a signal ends."""

import sys

import torch
from test_loop import make_loop

if __name__ == "__main__":
    torch.set_num_threads(1)
    make_loop(sys.argv[1], max_steps=100_000, logging_steps=1, save_steps=0, evaluator=None).run()
