"""diagnosis.py: a loss or a gradient that is not finite stops training, and the place is named."""
import math

import numpy as np
import pytest

import tinypeft as tp
from tests.toys import Noise, same, small
from tinypeft.engine.optim import AdamW
from tinypeft.files import load_arrays

N = 9                                                    # steps of most runs below


class Poisoned(Noise):
    """At the sixth step a weight becomes NaN."""
    def __init__(self, weight):
        super().__init__()
        self.weight, self.steps = weight, 0

    def batch(self, split, size, rng):
        self.steps += 1
        if self.steps == 6: self.weight.data = np.full_like(self.weight.data, np.nan)
        return super().batch(split, size, rng)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("path", ["token_embedding", "blocks.0.attention.value", "blocks.1.norm2", "blocks.1.mlp.down"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_loss_that_is_not_finite_stops_and_says_where(path, dropout, tmp_path):
    model, file = small(dropout), tmp_path / "c.npz"
    modules = dict(model.named_modules())
    with pytest.raises(tp.DivergedError) as e:
        tp.train(model, Poisoned(model.get(path).weight), N, lr=1e-3, checkpoint=file, checkpoint_every=2, progress=False)
    assert str(e.value) == (f"step 5: the loss is nan; the first value that is not finite comes out of {path}. "
                            f"Try a smaller learning rate than 0.001. The last saved state is in {file}.")
    arrays, meta = load_arrays(file)
    assert meta["step"] == 4 and all(np.isfinite(a).all() for a in arrays.values())
    assert dict(model.named_modules()) == modules and not model.training                   # left as it was


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("weight, path", [("B", "value"), ("base.weight", "value.base")])
def test_in_a_wrapped_layer_the_part_is_named(weight, path):
    tuned = tp.attach(small(), tp.LoRA(rank=2))
    weight = dict(tuned.model.blocks[1].attention.value.named_parameters())[weight]
    with pytest.raises(tp.DivergedError, match=rf"comes out of model.blocks.1.attention.{path}\. "):
        tp.train(tuned, Poisoned(weight), N, progress=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_number_that_is_not_finite_is_enough():
    """One NaN in a bias makes one number of a module's output NaN; that module is named, and not a later one."""
    class OneNaN(Noise):
        def batch(self, split, size, rng):
            bias.data = np.where(np.arange(bias.size) == 3, np.float32(np.nan), bias.data)
            return super().batch(split, size, rng)
    model = small()
    bias = model.blocks[1].mlp.up.bias
    with pytest.raises(tp.DivergedError, match=r"comes out of blocks\.1\.mlp\.up\. "):
        tp.train(model, OneNaN(), N, progress=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_update_that_leaves_a_number_that_is_not_finite(checkpoint, tmp_path):
    """The last step has no successor that would notice it, and a checkpoint must not hold it."""
    class Overflowing(AdamW):
        def step(self):
            super().step()
            if self.t == 3: self.parameters()[0].data[0, 0] = np.inf
    file = tmp_path / "c" if checkpoint else None
    kept = rf" The last saved state is in {file}\." if checkpoint else ""
    with pytest.raises(tp.DivergedError, match=r"step 2: after the update token_embedding\.weight holds a number that is not "
                                               rf"finite\. Try a smaller learning rate than 0.001\.{kept}$"):
        tp.train(small(), Noise(), 3, lr=1e-3, optimizer=Overflowing, checkpoint=file, progress=False)
    if checkpoint: assert load_arrays(file)[1]["step"] == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_search_repeats_the_step_with_its_dropout():
    class Infinite(Noise):
        seen = []
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            self.seen.append(loss.item())
            return loss * math.inf
    task = Infinite()
    with pytest.raises(tp.DivergedError):
        tp.train(small(dropout=0.5), task, N, progress=False)
    assert len(task.seen) == 2 and task.seen[0] == task.seen[1]


def test_a_loss_that_is_infinite_by_itself():
    class Infinite(Noise):
        def loss(self, model, batch): return super().loss(model, batch) + math.inf
    with pytest.raises(tp.DivergedError, match=r"step 0: the loss is inf; the first .* out of the loss itself\. Try a .*\.$"):
        tp.train(small(), Infinite(), N, progress=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_is_not_finite_is_named_and_not_taken():
    class Steep(Noise):                                  # √0 has a value and no gradient
        def loss(self, model, batch): return super().loss(model, batch) + (model.blocks[0].norm1.weight * 0).sqrt().sum()
    model = small()
    before = {n: a.copy() for n, a in model.state_dict().items()}
    with pytest.raises(tp.DivergedError, match=r"step 0: the gradient is not finite, in blocks.0.norm1.weight\. Try"):
        tp.train(model, Steep(), N, progress=False)
    assert same(model.state_dict(), before) and all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_bad_number_of_many_is_enough():
    """One output of one layer is NaN: the layer is named, not the next one, where it has spread. The same for gradients."""
    model = small()
    model.blocks[0].mlp.down.bias.data[3] = np.nan
    with pytest.raises(tp.DivergedError, match=r"the first value that is not finite comes out of blocks.0.mlp.down\."):
        tp.train(model, Noise(), N, progress=False)

    class Steep(Noise):
        def loss(self, model, batch): return super().loss(model, batch) + (model.blocks[0].norm1.weight[:1] * 0).sqrt().sum()
    with pytest.raises(tp.DivergedError, match=r"the gradient is not finite, in blocks.0.norm1.weight\. Try"):
        tp.train(small(), Steep(), N, progress=False)
