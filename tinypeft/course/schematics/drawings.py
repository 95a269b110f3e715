"""Schematics whose drawing is finished: an SVG beside this file, and the words that go with it."""
from pathlib import Path

from ...study.plot import Drawing

__all__ = ["WORDS", "read_drawing"]

WORDS = {                                                # name → (sentence, detail, alt)
    "map": (
        "Methods differ in the place of the block at which they act.",
        "A number marks one place where a method of that number puts what it trains; full "
        "fine-tuning trains all.",
        "One transformer block, read upwards, with numbered places: 1 full fine-tuning, all "
        "weights; 2 adapters, behind attention's output and behind the MLP; 3 parallel adapters, "
        "beside the MLP; 4 LoRA, AdaLoRA, DyLoRA, beside a weight matrix; 5 prefix tuning and "
        "P-tuning v2, keys and values in attention; 6 prompt tuning and P-tuning, vectors at the "
        "input; 7 QLoRA and PEQA, weights stored in few bits."),
    "road": (
        "What each lesson builds on, and three ways through the course.",
        "An arrow leads from a lesson to one that builds on it; each names all that it needs in "
        "its first lines. The orange boxes take an afternoon (of 07 the half hour marked ◆), with "
        "the blue ones a week, and all of them a term.",
        "A graph of the lessons. 01 leads to 01b and 02; 02 to 03 and 10; 03 to 04, 05 and 07; 05 "
        "to 06; 07 to 08, 09 and 17; 07 and 10 to 13; 10 to 11 and 14; 11 to 12; 13 to 13b and "
        "15; 11 and 13 to 16; 12 to 18. 00 and 07 are orange; 01, 02, 03, 10, 13 and 15 are "
        "blue."),
    "autograd": (
        "Each use of a value is an edge, and each edge brings a part of its gradient: the slope "
        "times the gradient at its end.",
        "The parts are added before the gradient goes on.",
        "A graph of x = 3, a = x · x = 9, b = a + a = 18, c = b + a = 27. Two edges from x to a "
        "have the slope 3; two from a to b, one from a to c and one from b to c have the slope 1. "
        "The gradients are 1 for c, 1 for b, 3 for a and 18 for x."),
    "stack": (
        "The walk ends at the lowest trained layer.",
        "Above it, a frozen linear layer passes dX on, for which it needs its weight and not its "
        "input.",
        "Five linear layers in a row between x and a loss; the third is trained. Backwards, dY "
        "goes from the loss to layer 5, and dX from 5 to 4 and from 4 to 3, where dW is computed. "
        "Layers 1 and 2 compute no gradient and keep nothing."),
    "transformer": (
        "A block adds twice to the residual stream: what attention gathers from earlier tokens, "
        "and what the MLP makes of each token.",
        "Grey boxes hold weights. B rows of T tokens have d numbers each, and H heads share them.",
        "Left, read upwards: x of shape (B, T, d), layer norm, query, key and value of d × d, "
        "attention with weights of (B, H, T, T), output of d × d, addition to the residual "
        "stream; layer norm, up to 4d, GELU, down to d, addition. Right: the d columns are split "
        "into H pieces; a mask of 3 queries and 5 keys, where query 0 sees the keys 0 to 2, query "
        "1 the keys 0 to 3 and query 2 all; one head multiplies q by the transpose of k, applies "
        "softmax and multiplies by v."),
    "memory": (
        "The backward pass needs what the forward pass computed, and each layer keeps its share.",
        "Training fewer weights removes gradients and moments. It removes only a part of the "
        "activations.",
        "Left: the operations of a block and what each keeps, in units of B times T times d: "
        "layer norm 1, query, key and value together 1, attention 3 and two numbers a query, "
        "output 1, addition nothing, layer norm 1, up 1, GELU 4, down 4. Right: four bytes each "
        "for weight, gradient and Adam's two moments."),
    "adapters": (
        "An adapter is a narrow network of width m. Only adapters are trained.",
        "In the path it reads what the layer computed; beside the path it reads what the layer "
        "reads, which is behind the norm.",
        "Two drawings, read upwards. Left: x goes through a norm and a frozen layer, then through "
        "an adapter that narrows d numbers to m, applies GELU and widens them to d again; the "
        "adapter has its own skip connection, and the residual connection goes around all. Right: "
        "behind the norm, the adapter stands beside the frozen layer, with ReLU for GELU, and both "
        "results are added."),
    "prompts": (
        "A trained prompt is P vectors in front of the embedded text, and the frozen model reads "
        "them as tokens.",
        "The text moves up by P positions. P · d numbers are trained.",
        "Eleven columns of d numbers: four trained vectors and the embeddings of seven tokens. "
        "They have the positions 0 to 10. All go through the frozen blocks; only the seven "
        "columns of the text have logits."),
    "prefix": (
        "A prompt is trained at the input alone; a prefix has keys and values of its own in every "
        "layer.",
        "In a head, the prefix takes the share λ of the softmax, and what the text says counts 1 "
        "− λ.",
        "Top left: a trained prompt of three vectors beside four tokens at the input, at the "
        "positions 0 to 6; in the layers above, its columns are what the frozen layers make of "
        "it. Top right: trained keys and values in each layer, nothing at the input, where the "
        "tokens have the positions 3 to 6; every token sees all of the prefix. Below, one query q "
        "times the keys of prefix and text gives shares, λ for the prefix and 1 − λ for the text, "
        "which weigh their values."),
    "lora": (
        "LoRA adds a detour of two thin matrices to a frozen matrix.",
        "Drawn in proportion for r = d/8: A and B together have 2dr numbers, a quarter of d².",
        "x, d numbers a token, goes through the frozen d × d matrix W₀, and beside it through A, r "
        "× d, and B, d × r. The second result is multiplied by α/r and added to the first. On the "
        "right the merged matrix, again d × d."),
    "adalora": (
        "AdaLoRA takes away triplets with the lowest score until the budget is met.",
        "Each triplet can be set aside alone, because P has orthogonal columns and Q has "
        "orthogonal rows.",
        "Left: a frozen d × d matrix plus P, d × r, times a diagonal r × r matrix Λ, times Q, r × "
        "d; two of the six λ are zero, with their columns of P and rows of Q; they may come back. "
        "Right: the number of triplets over the steps of training. It stays at b₀ until t_i, falls "
        "along a cubic curve to b_T at T − t_f, and stays there until T."),
    "dylora": (
        "One pair of matrices holds LoRAs of every rank, one inside the other.",
        "The first row takes part in every step and the last in one of R, so the first rows learn "
        "what matters most.",
        "Four drawings of B, d × 8, and A, 8 × d, for the ranks 1, 2, 4 and 8. The first b "
        "columns of B and rows of A are in colour. Under each a bar as long as the scale α/b: half "
        "as long at 2 as at 1. Below, bars: row 1 takes part in 8 of 8 steps, row 2 in 7 of 8, and "
        "so on to row 8, in 1 of 8."),
    "outliers": (
        "The column with outliers is multiplied in 16 bits, and all the others in 8.",
        "A product of matrices is a sum over columns of X and rows of Wᵀ, so it can be split.",
        "X, T × d, with one column marked, times the transpose of W, d × d_out, with the same row "
        "marked, equals two parts. In int8: codes of X without the column, with a scale for each "
        "row, times codes of W, with a scale for each output. In 16 bits: the column, T × 1, "
        "times the row, 1 × d_out."),
    "gptq": (
        "GPTQ rounds one column after the other, and the columns that are still floats make up "
        "for its error.",
        "Row j of U says how much each of the later columns takes over.",
        "A matrix of ten columns: four are rounded, the fifth is being rounded, and its error E "
        "times U_jk is subtracted from the five that follow. At the right the three steps, and an "
        "upper triangular matrix U with row j marked."),
    "straight_through": (
        "Rounding is computed as it is, but its gradient pretends that it was the identity.",
        "Outside the grid the gradient is 0: a clipped number has no say.",
        "Left: a staircase of five steps, flat outside the lowest and the highest code, and a "
        "dashed diagonal through it. Right: the true slope is 0 everywhere, without a value at "
        "the steps; the straight-through slope is 1 between the lowest and the highest code and 0 "
        "outside."),
    "llama": (
        "A Llama block differs from GPT-2's in its norm, its positions, its heads and its MLP.",
        "Drawn for SmolLM2-135M: d = 576, H = 9, G = 3, and d_mlp = 1536.",
        "Left, a block read upwards: RMS norm; query of d × d, key and value of G·d/H × d; query "
        "and key are rotated; attention; output; addition to the residual stream; RMS norm; gate "
        "and up, each d_mlp × d; silu of the gate times up; down, d × d_mlp; addition. Right: "
        "nine heads of queries, of which three each share one head of keys and values; and an "
        "arrow that is turned by an angle that grows with the position."),
    "children": (
        "Each child of LoRA asks one question about it.",
        "What is asked stands in grey, and who answers it in orange.",
        "A tree: LoRA, W₀ plus s B A, on the left; seven questions in the middle, each with the "
        "methods that answer it on the right. Why so low a rank: LoHa, LoKr, HiRA. Why begin at B "
        "= 0: PiSSA, OLoRA, EVA, LoRA-GA. Why length with direction: DoRA. Why add, and not turn: "
        "OFT. Why train both factors: MiSS, VeRA, RandLoRA. Why rank, and not a pattern: SHiRA, "
        "FourierFT, C³A. Why the weight at all: LoReFT, trainable tokens."),
}


def read_drawing(name: str) -> Drawing:
    """Read the schematic of that name."""
    svg = Path(__file__).with_name(f"{name}.svg").read_text("utf-8")
    return Drawing(svg, *WORDS[name])
