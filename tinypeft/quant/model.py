"""quantize: the one verb that puts any scheme on a model."""
from ..common.hints import Calibration, Targets
from ..common.progress import Progress
from ..engine.nn import Linear, replace_modules
from ..engine.tensor import within
from ..models.calibration import as_batches, calibrating
from ..models.decoder import Decoder, require_free
from ..models.targets import match_targets
from .calibration import showing
from .scheme import Scheme


def quantize(model: Decoder, scheme: Scheme, calibration: Calibration = None,
             targets: Targets = "all", skip_quantized: bool = False,
             progress: bool | None = None) -> Decoder:
    """Replace the linear layers in the blocks by quantized ones, in place; return the model.

    scheme: such as `NF4()`. calibration: tokens for schemes that look at activations, int (B, T) or
    an iterable of such arrays. targets: names of layers as in `attach`, or "all". skip_quantized:
    leave layers that are quantized already as they are; a merged QLoRA has both kinds. progress:
    show one line of it while a model is calibrated (default: on a terminal and in a notebook).

    Embeddings and norms keep their precision. ValueError when a method is attached or disabled, a
    layer is quantized already, or needed calibration is missing. An error leaves the model as it
    was."""
    if not isinstance(model, Decoder):
        hint = "; the model comes first"
        if hasattr(model, "detach"):
            hint = "; quantize first, then attach the method"
        raise TypeError(f"quantize: expected a language model, got {type(model).__name__}{hint}")
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantize: expected a scheme such as tinypeft.NF4(), got {scheme!r}")
    require_free(model, "quantize")
    layers = {}
    for path, layer in match_targets(model, targets):
        if isinstance(layer, Linear):
            layers[path] = layer
        elif not skip_quantized:
            raise ValueError(f"quantize: {path} is a {type(layer).__name__} already, not a Linear; "
                             "skip_quantized=True quantizes the other layers")
    if not layers:
        raise ValueError("quantize: all of these layers are quantized already")
    batches = as_batches(model, calibration)
    if scheme.calibrated and not batches:
        raise ValueError(f"quantize: {type(scheme).__name__} looks at activations; give it "
                         "calibration=, tokens (B, T) or a list of such arrays")
    before = [(p, p.data) for p in model.parameters()]
    try:
        with (calibrating(model), Progress(None, "quantizing", progress) as bar,
              within(showing, bar)):
            scheme.apply(model, layers, batches)
    except BaseException:
        replace_modules(model, layers)
        for p, data in before:
            if p.data is not data:
                p.assign(data)
        raise
    return model
