"""Imported by the process that test programs are forked from: all that takes seconds to import."""

from __future__ import annotations

import gc
import inspect
from functools import partial

import dp_basicsr.runs.start
import dp_basicsr.runs.training
import dp_basicsr.runs.trial  # noqa: F401

import torch._dynamo  # DistributedDataParallel and the optimizers import it
import torch.distributed.run
import torch.utils.tensorboard  # noqa: F401

import tests.support.options
import tests.support.processes  # noqa: F401

# torchrun looks at the stack in each round of its rendezvous; to find the source lines among so many modules takes it
# longer than a round may.
inspect.stack = partial(inspect.stack, 0)

gc.freeze()  # else the first full collection of each child looks at, and copies, all that was imported
