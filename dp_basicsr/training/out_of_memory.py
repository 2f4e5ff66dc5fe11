"""Turn running out of memory in a training step into a user error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from dp_basicsr.data.stream import batch_size_per_gpu
from dp_basicsr.errors import UserError, first_line
from dp_basicsr.utils.memory import is_out_of_memory


@contextlib.contextmanager
def out_of_memory_is_user_error(opt: dict[str, Any], also: str = "") -> Iterator[None]:
    """Turn running out of GPU or CPU memory into a UserError that lists the options that help.

    Args:
        opt: Options of the run.
        also: Appended to the message.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        train, data = opt["train"], opt["datasets"]["train"]
        raise UserError(
            f"a training step does not fit into memory ({first_line(error)}); each of these reduces it: "
            f"train: checkpointing: true (now {str(train.get('checkpointing', False)).lower()}), "
            f"train: amp: bf16 (now {train.get('amp', 'none')}), "
            f"a larger train: grad_accumulation (now {train.get('grad_accumulation', 1)}), "
            f"a smaller datasets: train: batch_size_per_gpu (now {batch_size_per_gpu(opt)}) "
            f"or gt_size (now {data['gt_size']}){also}"
        ) from error
