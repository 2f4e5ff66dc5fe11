"""SLURM: translate the variables of srun into those that torch.distributed reads."""

from __future__ import annotations

import os
import re

from dp_basicsr.errors import UserError

import torch

# Jobs on one node must use different ports: each SLURM job gets four, one for each of its steps.
SLURM_PORTS, STEPS_A_JOB = range(12288, 28672), 4
DEFAULT_PORT = 29500  # torch.distributed's own


def adopt_slurm(port: int | None) -> None:
    """Translate srun's variables into those that torch.distributed reads.

    The step's own variables take precedence over the allocation's, because srun may use only a part of it.
    """
    ntasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
    nodelist = "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in os.environ else "SLURM_NODELIST"
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": ntasks, "LOCAL_RANK": "SLURM_LOCALID"}
    if missing := sorted({*names.values(), nodelist} - os.environ.keys()):
        raise UserError(f"--launcher slurm: {', '.join(missing)} not set; start with srun")
    os.environ |= {name: os.environ[slurm] for name, slurm in names.items()}
    os.environ["MASTER_ADDR"] = first_host(os.environ[nodelist])
    os.environ["MASTER_PORT"] = str(port or os.environ.get("MASTER_PORT") or slurm_port())
    if "OMP_NUM_THREADS" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
        # Otherwise every task uses all cores of the node.
        torch.set_num_threads(int(os.environ["SLURM_CPUS_PER_TASK"]))


def first_host(nodelist: str) -> str:
    """Return the first host of a SLURM node list, ``node[03-07,12]``; containers have no ``scontrol`` to ask."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodelist).partition(",")[0]


def slurm_port() -> int:
    """Return a port for this job step; consecutive job numbers get different ports."""
    job, step = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_STEP_ID", "0")
    if not (job.isdecimal() and step.isdecimal()):
        return DEFAULT_PORT
    return SLURM_PORTS[(int(job) * STEPS_A_JOB + int(step) % STEPS_A_JOB) % len(SLURM_PORTS)]
