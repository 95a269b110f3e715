"""A paged optimizer: AdamW whose state is a file, of which memory holds only what an update is touching.

Adam keeps two numbers per trained parameter, twice the parameters' own bytes, and looks at each once per step. QLoRA
(Dettmers et al., arXiv 2305.14314, §3, "Paged Optimizers") leaves them where the driver may move them from a GPU to the
CPU's memory and back, page by page, so that a long batch that needs the room does not fail. Here the same is done between
memory and disk: the state is memory-mapped, the operating system reads a page in when the update touches it, and after the
update the process lets go of it.

The arithmetic is AdamW's, on the same numbers in the same order: the trajectory is the same, bit for bit. Resident at a time:
the state of the parameter that is being updated, instead of 8 bytes (float32) for every number trained, on one thread.
What was let go of stays in the system's cache of the file while there is room, and goes to disk when there is not; in a
directory that is itself in memory (tmpfs, as /tmp sometimes is) nothing is gained. Measured for 16 M parameters, whose state
takes 128 MiB: the process grows by less than 1 MiB instead, and a step takes 1.5 times as long, while the cache has room.
"""
import mmap
import os
import tempfile

import numpy as np

from .optim import AdamW

__all__ = ["PagedAdamW"]


class PagedAdamW(AdamW):
    """`AdamW` with its state in a temporary file in `directory` (default: the system's).

    The file has no name, or loses it with the process: it is gone when the optimizer is, however the process ends.
    `nbytes`: the size of the state. Raises OSError when the directory cannot hold it.
    """

    workers = 1                                                           # one parameter's state in memory at a time

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, directory=None):
        self.file, self.pages, self.nbytes = tempfile.TemporaryFile(dir=directory), {}, 0
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def allocate(self, p):
        start, size = self.file.seek(0, 2), -(-p.data.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if hasattr(os, "posix_fallocate"): os.posix_fallocate(self.file.fileno(), start, size)
        else:                              self.file.truncate(start + size)       # zeros, either way
        pages = mmap.mmap(self.file.fileno(), size, offset=start)
        state = np.frombuffer(pages, p.dtype, p.size).reshape(p.shape)
        self.pages[id(state)] = pages
        self.nbytes += state.nbytes
        return state

    def _step_one(self, p, group):
        super()._step_one(p, group)
        for state in self.state[id(p)]:                                   # the file, or the system's cache of it, keeps it
            if hasattr(mmap, "MADV_DONTNEED"): self.pages[id(state)].madvise(mmap.MADV_DONTNEED)
