"""Run by test_updates in two processes: the gradients of one update whose batches are spread over both."""

import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from toys import gradients_of_update, noise

if __name__ == "__main__":
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
    rank = int(os.environ["RANK"])
    shares = {
        "one batch each": [[noise(8000, 2000)], [noise(1600, seed=7)]],
        "two steps each": [[noise(8000), noise(2000, seed=2)], [noise(1600, seed=7), noise(3000, 2500, seed=3)]],
        "one has no audio": [[noise(8000, 2000)], [noise()]],
    }
    results = {}
    for name, share in shares.items():
        gradients, sums = gradients_of_update(accelerator, share[rank])
        results[name] = {"gradients": gradients, "sums": sums}
    if accelerator.is_main_process:
        torch.save(results, sys.argv[1])
    accelerator.end_training()
