"""Faults that no test can notice: (module, function, before, after) → the reason.

`EQUIVALENT` faults change no result: they are not counted. `EXPLAINED` ones change a result that is not promised (a message,
the speed, the memory, the edge of a threshold); they count as survivors.
"""

__all__ = ["EQUIVALENT", "EXPLAINED"]

EQUIVALENT = {
    ("tinypeft/engine/functional.py", "attention", "R * n * seen", "R * n"):
        "how many heads are computed at once: the size of temporaries, not a number in them",
    ("tinypeft/models/generation.py", "LayerCache._grown", "2 * self.length", "self.length"):
        "the buffer grows at each token instead of seldom: slower, the same keys and values",
    ("tinypeft/interop/adapters.py", "load", "model: Decoder, file: Path, strict: bool=True",
     "model: Decoder, file: Path, strict: bool=False"):
        "`load_adapter`, its one caller, always says whether",
    ("tinypeft/interop/llama.py", "halves", "np.ascontiguousarray(pairs.swapaxes(1, 2))", "pairs.swapaxes(1, 2)"):
        "`reshape` copies what is not contiguous, so that the result is",
    ("tinypeft/peft/mixed.py", "_row_by_row", "join(lambda seams: seams['prefix'][l][kv].data, 3)",
     "join(lambda seams: seams['prefix'][l][kv].data, 6)"):
        "the last six axes of an array of three are its three axes",
    ("tinypeft/quant/awq.py", "AWQ.module_loss.L", "twin(x).data - y", "y - twin(x).data"):
        "only the square of the difference is read",
    ("tinypeft/quant/decoding.py", "decode", "parallel_map(decode_chunks, (starts[:half], starts[half:]), workers=2)",
     "parallel_map(decode_chunks, (starts[:half], starts[half:]), workers=3)"):
        "there are two items: a third worker has nothing to do",
    ("tinypeft/quant/uniform.py", "Uniform.grid", "np.float32(low).reshape(-1)", "np.float32(low).reshape(-2)"):
        "NumPy takes every negative length as the one to find",
    ("tinypeft/quant/measure.py", "requantize_error", "scheme.quantize(M).dequantize() - M",
     "M - scheme.quantize(M).dequantize()"):
        "only the squares of the difference are read",
}
EXPLAINED = {
    ("tinypeft/training/checkpoints.py", "_short", "text[:59] + '…'", "'…'"):
        "how much of a wrong value a message shows",
    ("tinypeft/interop/gguf_reader.py", "_read", "13 * n_fields", "n_fields"):
        "how early a file is refused that is too short for its counts: it is refused while they are read, too",
    ("tinypeft/quant/uniform.py", "Uniform.best_share", "error < least", "error <= least"):
        "of two ranges with the same error to the last bit, either is as good",
    ("tinypeft/course/calls.py", "text_of", "f'{type(error).__name__}: {error}'[:5000]",
     "f'{type(error).__name__}: {error}'[:5001]"):
        "the length at which a very long message of an error is cut",
    ("tinypeft/files/npz.py", "", "LONGEST_HEADER = 1000", "LONGEST_HEADER = 1001"):
        "how long the header of an array in an older file may be: the edge is a guess, and generous",
    ("tinypeft/training/loop.py", "train", "min(500, steps // 10)", "min(500, steps // 11)"):
        "a checkpoint at every eleventh of a run keeps the promise, which is at least every tenth",
}
