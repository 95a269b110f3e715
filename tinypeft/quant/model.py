"""quantize: the one verb that puts any scheme on a model."""
from ..gpt import GPT
from ..nn import Linear, replace_modules
from ..targets import match_targets
from .calibration import as_batches, calibrating
from .scheme import Scheme

__all__ = ["quantize"]


def quantize(model, scheme, calibration=None, targets="all"):
    """Replace the linear layers in the blocks by quantized ones, in place; return the model.

    scheme: such as `NF4()`. calibration: tokens for schemes that look at activations, int (B, T) or an iterable of
    such arrays. targets: names of layers as in `attach`, or "all". Embeddings and norms keep their precision.
    Raises ValueError when a method is attached (quantize first, then attach), when a layer is quantized already, or
    when a scheme needs calibration and gets none. Whatever is raised, the model is as it was before.
    """
    if not isinstance(model, GPT):
        hint = "; detach or merge the method first, or quantize before attaching" if hasattr(model, "detach") else ""
        raise TypeError(f"quantize: expected a GPT, got {type(model).__name__}{hint}")
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantize: expected a scheme such as tinypeft.NF4(), got {scheme!r}")
    if model.attached is not None:
        raise ValueError(f"quantize: {model.attached} is attached; merge or detach it, or quantize before attaching")
    layers = dict(match_targets(model, targets))
    for path, layer in layers.items():
        if not isinstance(layer, Linear):
            raise ValueError(f"quantize: {path} is a {type(layer).__name__} already; start from a model in floating point")
    batches = as_batches(model, calibration)
    if scheme.calibrated and not batches:
        raise ValueError(f"quantize: {type(scheme).__name__} looks at activations; give it calibration=, "
                         "tokens (B, T) or a list of such arrays")
    before = [(p, p.data) for p in model.parameters()]
    try:
        with calibrating(model):
            scheme.apply(model, layers, batches)
    except BaseException:
        replace_modules(model, layers)
        for p, data in before:
            p.data = data
        raise
    for p, data in before:
        p.version += p.data is not data
    return model
