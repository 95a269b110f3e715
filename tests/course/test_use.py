"""use: a function works inside the package for the length of a block, and then everything is as it was."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import use
from tinypeft.engine import functional as F
from tinypeft.engine.nn import Linear
from tinypeft.peft.lora import LoRALinear, LowRankLinear


class Base:
    limit = 3
    def f(self): return "f"
    @property
    def size(self): return "size"
    @staticmethod
    def s(x): return x
    @classmethod
    def c(cls): return cls
    def __len__(self): return 1


class Child(Base):
    pass


def test_a_method_of_a_class_and_back():
    before = dict(vars(Base))
    with use(Base, f=lambda self: ("mine", self), limit=7):
        one = Child()
        assert one.f() == ("mine", one) and one.limit == 7
    assert Child().f() == "f" and Child().limit == 3 and dict(vars(Base)) == before


def test_an_inherited_attribute_is_deleted_again():
    with use(Child, f=lambda self: "mine", __len__=lambda self: 5):
        assert Child().f() == "mine" and len(Child()) == 5 and Base().f() == "f"
    assert Child().f() == "f" and len(Child()) == 1 and "f" not in vars(Child)


def test_properties_and_static_methods_stay_what_they_are():
    with use(Base, size=lambda self: "mine", s=lambda x: 2 * x, c=lambda cls: cls.__name__):
        assert Base().size == "mine" and Base().s(2) == Base.s(2) == 4 and Child.c() == "Child"
    with use(Base, size=property(lambda self: "other")): assert Base().size == "other"
    assert Base().size == "size" and Base().s(2) == 2 and Base.c() is Base


def test_a_module_and_a_lazy_package():
    gelu, train = F.gelu, tp.train
    with use(F, gelu=abs), use(tp, train=len, find_rate=len):
        assert F.gelu is abs and tp.train is len is tp.find_rate
    assert F.gelu is gelu and tp.train is train and callable(tp.find_rate) and tp.find_rate is not len


def test_an_object():
    one = Base()
    with use(one, f=lambda: "mine"): assert one.f() == "mine" and Base().f() == "f"
    assert one.f() == "f" and vars(one) == {}
    one.f = stored = lambda: "stored"
    with use(one, f=lambda: "mine"): assert one.f() == "mine"
    assert one.f is stored


def test_an_object_with_slots():
    class Slots:
        __slots__ = ("f",)
    one = Slots()
    one.f = 1
    with use(one, f=2): assert one.f == 2
    assert one.f == 1


def test_nested_blocks_and_exceptions():
    with pytest.raises(ZeroDivisionError), use(Base, f=lambda self: 1):
        with use(Base, f=lambda self: 2): assert Base().f() == 2
        assert Base().f() == 1
        with pytest.raises(KeyError), use(Base, f=lambda self: 3): raise KeyError
        assert Base().f() == 1
        1 / 0  # noqa: B018
    assert Base().f() == "f"


@pytest.mark.parametrize("owner, names, says", [
    (Base, {"g": len}, r"use: Base has no attribute 'g'; it has c, f, limit, s, size"),
    (LoRALinear, {"foward": len}, r"LoRALinear has no attribute 'foward'; did you mean forward"),
    (F, {"sofmax": len}, r"tinypeft.engine.functional has no attribute 'sofmax'; did you mean .*softmax"),
    (tp, {"trian": len}, r"tinypeft has no attribute 'trian'; did you mean .*train"),
    (Base(), {"g": len}, r"the Base has no attribute 'g'")])
def test_an_attribute_that_does_not_exist(owner, names, says):
    with pytest.raises(AttributeError, match=says), use(owner, **names): raise AssertionError


@pytest.mark.parametrize("owner, names, says", [
    (Base, {}, r"nothing is replaced; write use\(Base, name=function\)"),
    (Base, {"f": None}, "f of Base is a function; got None, which cannot be called"),
    (Base, {"limit": 9, "f": 3}, "f of Base is a function; got 3"),
    (dict, {"get": len}, "get of dict cannot be replaced .*replace it in a class or a module of Python"),
    (tp.LoRA(), {"rank": 3}, "rank of the LoRA cannot be replaced")])
def test_what_cannot_be_replaced(owner, names, says):
    before = dict(vars(Base))
    with pytest.raises(TypeError, match=says), use(owner, **names): raise AssertionError
    assert dict(vars(Base)) == before


def test_what_was_replaced_before_an_error_is_put_back():
    class Fixed:
        f = len
        @property
        def p(self): return 1
    one = Fixed()
    with pytest.raises(TypeError, match="p of the Fixed"), use(one, f=abs, p=3): raise AssertionError
    assert one.f is len


def test_a_students_lora_trains_in_the_model():
    """The use it is made for: the same losses as with the package's forward, and it was called."""
    called = []

    def forward(self, x):
        called.append(self)
        return F.linear(x, self.base.weight, self.base.bias) + F.linear(F.linear(x, self.A), self.B) * 2.0

    def losses():
        model = tp.GPT(tp.GPTConfig(vocab_size=11, context_length=8, d_model=8, n_layers=1, n_heads=2), rng=0)
        tuned = tp.attach(model, tp.LoRA(rank=2, alpha=4), rng=0)
        tokens = np.arange(8)[None] % 11
        optimizer = tp.optim.AdamW(list(tuned.trainable_parameters()), lr=0.1)
        found = []
        for _ in range(3):
            loss = F.cross_entropy(tuned(tokens), (tokens + 1) % 11)
            loss.backward()
            optimizer.step()
            for p in tuned.trainable_parameters(): p.grad = None
            found.append(loss.item())
        return found
    expected = losses()
    with use(LoRALinear, forward=forward): mine = losses()
    np.testing.assert_allclose(mine, expected, rtol=1e-5)
    assert called and LoRALinear.forward is not forward and issubclass(LoRALinear, LowRankLinear) and Linear.forward
