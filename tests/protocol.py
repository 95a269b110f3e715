"""What the tests of every method share: gradients, freezing, files, and a race against an oracle."""
import atexit
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.toys import Noise
from tinypeft.engine import functional as F
from tinypeft.engine.optim import AdamW

__all__ = ["LENGTHS", "Both", "Labels", "assert_gradients", "assert_leaves_base_alone", "assert_same_race", "assert_saves",
           "frozen_bytes", "hold_norm", "learned", "move", "outputs", "shift"]

LENGTHS = [3, 7, 5]                                      # of three rows of tokens


def shift(tokens):
    """(inputs, targets) of next-token prediction."""
    return tokens[:, :-1], tokens[:, 1:]


def frozen_bytes(model):
    return {name: a.tobytes() for name, a in model.state_dict().items()}


def move(tuned, rng, size=0.1):
    """Put everything trainable somewhere it does not start, so that nothing is zero by accident."""
    for p in tuned.trainable_parameters():
        p.assign(p.data + (size * rng.standard_normal(p.shape)).astype(p.dtype))


class Labels(Noise):
    """Random tokens of random length, random classes of three."""

    def batch(self, split, size, rng):
        return rng.integers(0, 37, (size, 7)), rng.integers(1, 8, size), rng.integers(0, 3, size)

    def count(self, batch):
        return len(batch[0])

    def loss(self, model, batch):
        tokens, lengths, classes = batch
        return tp.functional.cross_entropy(model.class_logits(tokens, lengths), classes)


class Both(Labels):
    """The same rows, whose next tokens count as well: every state and the head get a gradient."""

    def loss(self, model, batch):
        x, y = shift(batch[0])
        return super().loss(model, batch) + tp.functional.cross_entropy(model(x), y)


def outputs(tuned, tokens):
    """Logits and class logits, as bytes."""
    return tuned(tokens).data.tobytes(), tuned.class_logits(tokens, LENGTHS).data.tobytes()


def learned(model, method):
    """`method` on `model`, with everything trainable moved at random, as if it had learned."""
    tuned = tp.attach(model, method, rng=0)
    move(tuned, np.random.default_rng(0))
    return tuned


def hold_norm(layer):
    """Keep the lengths by which a DoRA divides at what they are now: its gradient takes them as constants."""
    norm = layer.norm()
    layer.norm = lambda: norm


def assert_gradients(tuned, tokens, kinks=False, step=1e-3):
    """Every trainable tensor's gradient of the logits, against finite differences in random directions; float64.

    With `kinks` (ReLU) steps are too small to cross one, and leave fewer digits; then one direction for each tensor is enough.
    """
    params, how = tuned.trainable_parameters(), dict(step=step, tolerance=1e-8, directions=2)
    if kinks: how = dict(step=1e-6, tolerance=1e-6, directions=1)
    tp.gradcheck(lambda *_: tuned(tokens), *params, **how)
    assert all(not p.requires_grad for p in tuned.model.parameters() if id(p) not in set(map(id, params)))


def assert_leaves_base_alone(model, method, tokens, steps=3):
    """Training moves what the method trains and nothing else; the base stays as it was, byte for byte."""
    before, flags = frozen_bytes(model), [p.requires_grad for p in model.parameters()]
    tuned = tp.attach(model, method, rng=1)
    base = {n: p for n, p in tuned.model.named_parameters() if not p.requires_grad}
    start = {n: a.copy() for n, a in tuned.state_dict().items()}
    bytes_ = {n: p.data.tobytes() for n, p in base.items()}
    x, y = shift(tokens)
    optimizer = AdamW(tuned.trainable_parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(tuned(x), y).backward()
        optimizer.step()
    assert all(p.grad is None and p.data.tobytes() == bytes_[n] for n, p in base.items())
    moved = {n: not np.array_equal(start[n], a) for n, a in tuned.state_dict().items()}
    frozen = {n for n, a in start.items() if a.dtype.kind in "iu" or "/shared." in n}    # counted, chosen, or shared by layers
    assert all(moved[n] != (n in frozen) for n in moved), moved
    assert tuned.detach() is model and frozen_bytes(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags


CHILD = """
import json, sys
sys.path.insert(0, {root!r})
import numpy as np, tinypeft as tp
from tests.conftest import make_gpt
for line in sys.stdin:
    for folder in json.loads(line):
        tuned = tp.load_adapter(make_gpt(np.float32), folder)
        out = {{"logits": tuned(np.load(folder + "/tokens.npy")).data, "trained": len(tuned.trainable_parameters())}}
        if tuned.head is not None: out["classes"] = tuned.class_logits(np.load(folder + "/tokens.npy"), [3, 7, 5]).data
        np.savez(folder + "/out.npz", **out)
    print("loaded", flush=True)
"""


@functools.cache
def reader():
    """A process that loads what it is told to, and does nothing else. Starting one for each method takes half a second."""
    root = str(Path(__file__).parents[1])
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(root=root)], cwd=root, encoding="utf-8",
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(child.communicate)
    return child


def assert_saves(make_gpt, methods, tokens, folder, head=3):
    """Saved and loaded in another process, every method gives the same logits and class logits, bit for bit."""
    want, folders = [], []
    for i, method in enumerate(methods):
        tuned = tp.attach(make_gpt(np.float32), method, rng=i, head=head)
        move(tuned, np.random.default_rng(i))
        path = folder / str(i)
        tuned.save(path)
        np.save(path / "tokens.npy", tokens)
        want.append((tuned(tokens).data, tuned.class_logits(tokens, [3, 7, 5]).data))
        folders.append(str(path))
    reader().stdin.write(json.dumps(folders) + "\n")
    reader().stdin.flush()
    assert reader().stdout.readline() == "loaded\n"
    for (logits, classes), path in zip(want, folders, strict=True):
        out = np.load(path + "/out.npz")
        assert np.array_equal(out["logits"], logits) and np.array_equal(out["classes"], classes)
        assert out["trained"] > 0


def assert_same_race(tuned, oracle, pairs, tokens, steps=20, tolerance=1e-9):
    """20 steps of AdamW on both sides from the same start: logits, gradients, every loss and every parameter stay equal.

    oracle(inputs) gives torch logits; `pairs` are all of [(our Parameter, torch parameter)], or (…, to_torch) with
    a function of the array where shapes differ.
    """
    import torch
    pairs = [(*p, lambda a: a)[:3] for p in pairs]
    assert {id(p) for p, _, _ in pairs} == {id(p) for p in tuned.trainable_parameters()}
    with torch.no_grad():
        for ours, theirs, form in pairs:
            array = form(ours.data)
            assert array.shape == tuple(theirs.shape)
            theirs.copy_(torch.as_tensor(array.copy()))
    x, y = shift(tokens)
    optimizer = AdamW([p for p, _, _ in pairs], lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW([t for _, t, _ in pairs], lr=1e-2, weight_decay=0.1)
    start = tuned(x).data
    for _ in range(steps):
        logits = oracle(x)
        np.testing.assert_allclose(tuned(x).data, logits.detach().numpy(), rtol=0, atol=tolerance)
        optimizer.zero_grad(); theirs.zero_grad()
        loss = F.cross_entropy(tuned(x), y)
        torch_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.as_tensor(y).flatten())
        assert abs(loss.item() - torch_loss.item()) < tolerance
        loss.backward(); torch_loss.backward()
        for ours, torch_parameter, form in pairs:        # AdamW's first step does not see how large they are
            expected = torch_parameter.grad.numpy()    # in float64 a sum of 1e4 is right to 1e-8, not to 1e-12
            np.testing.assert_allclose(form(ours.grad), expected, rtol=1e-10, atol=tolerance)
        optimizer.step(); theirs.step()
    for ours, torch_parameter, form in pairs:
        np.testing.assert_allclose(form(ours.data), torch_parameter.detach().numpy(), rtol=0, atol=tolerance)
    assert np.abs(tuned(x).data - start).max() > 0.1         # it went somewhere
