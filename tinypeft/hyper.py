"""Hyperparameters as values: what methods and schemes are, and how they are written in tables."""
import dataclasses

__all__ = ["Hyperparameters"]


class Hyperparameters:
    """The base of frozen dataclasses whose fields are a paper's hyperparameters.

    The `repr` is the experiment's label: the fields named in `shown`, and whatever else is not at its default.
    `dataclasses.asdict` is the saved form.
    """
    shown = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Hyperparameters.__repr__          # @dataclass leaves a class's own __repr__ alone

    def __repr__(self):
        fields = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]
        text = ", ".join(f"{name}={value!r}" for name, value, default in fields if name in self.shown or value != default)
        return f"{type(self).__name__}({text})"
