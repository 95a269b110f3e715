"""quantize: the one verb that puts any scheme on a model; and dequantize."""
import copy

from ..common.hints import Calibration, Targets
from ..common.progress import Progress
from ..engine.nn import Embedding, Linear, replace_modules, shapes_only
from ..engine.tensor import within
from ..models.calibration import as_batches, calibrating
from ..models.decoder import Decoder, require_free
from ..models.targets import match_targets
from .calibration import showing
from .linear import QuantizedEmbedding, QuantizedLinear
from .scheme import Scheme


def quantize(model: Decoder, scheme: Scheme, calibration: Calibration = None,
             targets: Targets = "all", skip_quantized: bool = False,
             progress: bool | None = None) -> Decoder:
    """Replace the linear layers in the blocks by quantized ones, in place; return the model.

    scheme: such as `NF4()`. calibration: tokens for schemes that look at activations, int (B, T) or
    an iterable of such arrays. targets: names of layers as in `attach`, or "all". skip_quantized:
    leave layers that are quantized already as they are; a merged QLoRA has both kinds. progress:
    show one line of it while a model is calibrated (default: on a terminal and in a notebook).

    Embeddings and norms keep their precision. A PeftModel made of the model before computes with
    the weights as they were, and keeps them in memory: quantize first, then attach. ValueError for
    the model inside a PeftModel, when a layer is quantized already, or needed calibration is
    missing. An error leaves the model as it was."""
    require_free(model, "quantize")
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantize: expected a scheme such as tinypeft.NF4(), got {scheme!r}")
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


def coded_layers(model: Decoder) -> dict[str, QuantizedLinear | QuantizedEmbedding]:
    """Return path → layer of the layers and embeddings whose weights are codes."""
    return {path: m for path, m in model.named_modules()
            if isinstance(m, (QuantizedLinear, QuantizedEmbedding))}


def dequantize(model: Decoder, activations: str = "kept") -> Decoder:
    """Return a model that computes the same with plain weights: a copy whose quantized layers hold
    the numbers of their codes, or the model itself if it has no codes.

    activations: a layer may round its inputs, too, which no weights do. "kept" raises ValueError
    for such a layer; "exact" gives it plain weights all the same, and it rounds nothing. ValueError
    for the model inside a PeftModel."""
    if activations not in ("kept", "exact"):
        raise ValueError(f"dequantize: activations must be 'kept' or 'exact', got {activations!r}")
    require_free(model, "dequantize")
    plain = {}
    for path, layer in coded_layers(model).items():
        if not layer.is_affine and activations == "kept":
            raise ValueError(f"dequantize: {path} is a {type(layer).__name__}, which rounds its "
                             "inputs; no weights do that. With activations 'exact' it becomes a "
                             "plain layer, which rounds nothing")
        with shapes_only():
            if isinstance(layer, QuantizedEmbedding):
                plain[path] = Embedding(layer.d_out, layer.d_in, scale=layer.scale)
            else:
                plain[path] = Linear(layer.d_in, layer.d_out, layer.bias is not None)
                plain[path].bias = layer.bias
        plain[path].weight.data = layer.dense_weight().astype(model.dtype, copy=False)
    if not plain:
        return model
    model = copy.deepcopy(model)
    replace_modules(model, plain)
    return model
