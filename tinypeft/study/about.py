"""What the study and the pages know of each method and scheme. This is the one table to extend when you add one.

    ABOUT["lora"]               its `About`: title, equation, papers, lesson, look and short name
    about(name)                 the same, and of the study's own arms too; an unknown name says where to add it
    name_of(tp.LoRA(rank=4))    "lora": the name under which METHODS or SCHEMES has the class of a value
    lesson_map()                the table of lesson 00, Markdown

Plots take colours and markers from here, pictures their labels, and pages (`pages.py`) equations and papers.
`tests/study/test_about.py` fails if METHODS or SCHEMES has a name that is missing here.
"""
from dataclasses import dataclass
from pathlib import Path

from ..peft import METHODS
from ..quant import SCHEMES
from .markdown import table

__all__ = ["ABOUT", "ARMS", "About", "about", "class_link", "code", "lesson_map", "linked", "name_of"]


@dataclass(frozen=True)
class About:
    """What is known of a method or scheme.

    title: its name in a heading. equation: one line of plain text, in the letters of its file. papers: the one that introduced
    it first, each an arXiv id, or "name: address" of what is not there. lesson: two digits. look: (colour of `plot.COLOURS`,
    marker) and, if not solid, a line style. short: its label in pictures. rank: how large the rank of ΔW can be; "all", if
    nothing bounds it but the sides of W.
    """
    title: str
    equation: str
    papers: tuple[str, ...]
    lesson: str
    look: tuple[str, ...]
    short: str
    rank: str = "–"


ABOUT: dict[str, About] = {
    # -- methods
    "full": About("Full fine-tuning", "W ← W − η ∂L/∂W for every W; with targets, BitFit or layer-norm tuning",
                  ("2106.10199",), "03", ("black", "s"), "full", "all"),
    "lora": About("LoRA", "W ← W + (α/r) B A, or (α/√r) B A", ("2106.09685", "2312.03732"), "07", ("blue", "o"), "LoRA", "r"),
    "adalora": About("AdaLoRA", "W ← W + P Λ Q, Λ pruned to a budget during training",
                     ("2303.10512",), "08", ("blue", "^"), "AdaLoRA", "r"),
    "dylora": About("DyLoRA", "W ← W + (α/b) B[:, :b] A[:b], with b drawn anew in every step",
                    ("2210.07558",), "09", ("blue", "D"), "DyLoRA", "b"),
    "miss": About("MiSS", "W ← W + [D, D, …, D]: D stands beside itself until it is as wide as W",
                  ("2409.15371",), "17", ("orange", "<"), "MiSS", "r"),
    "dora": About("DoRA", "W ← m (W + s B A)/‖W + s B A‖, the length of each row, m, apart from its direction",
                  ("2402.09353",), "07", ("sky", "p"), "DoRA", "all"),
    "vera": About("VeRA", "W ← W + Λ_b B Λ_d A, A and B random and the same for all layers",
                  ("2310.11454",), "17", ("sky", "v"), "VeRA", "r"),
    "randlora": About("RandLoRA", "W ← W + (α/r) Σ_j B_j Λ_j A Γ_j, A and B_j random and the same for all layers",
                      ("2502.00987",), "17", ("sky", "X"), "RandLoRA", "all"),
    "fourierft": About("FourierFT", "W ← W + α Re(IFFT₂(F)), F = c at n places, else 0", ("2405.03003",), "17", ("green", "1"),
                       "FourierFT", "2n"),
    "loha": About("LoHa", "W ← W + (α/r) (B₁ A₁) ⊙ (B₂ A₂)", ("2309.14859", "2108.06098"), "17", ("sky", "H"), "LoHa", "r²"),
    "lokr": About("LoKr", "W ← W + (α/r) C ⊗ (B A)", ("2309.14859", "2212.10650"), "17", ("orange", "8"), "LoKr",
                  "rank C · rank BA"),
    "hira": About("HiRA", "W ← W + W ⊙ B A", ("ICLR 2025: https://openreview.net/forum?id=TwJrTz9cRS",), "17",
                  ("black", "8"), "HiRA", "r · rank W"),
    "c3a": About("C³A", "W ← W + C_blk(Δw)/d_in, blocks whose rows are one row, turned", ("2407.19342",), "17", ("purple", "2"),
                 "C³A", "all"),
    "shira": About("SHiRA", "W ← W + S, S is 0 but at r (d_in + d_out) places drawn at random",
                   ("2406.13175",), "17", ("sky", "4"), "SHiRA", "all"),
    "oft": About("OFT", "W ← W Rᵀ, R = (I + Q)(I − Q)⁻¹ in each block, Q = −Qᵀ",
                 ("2306.07280", "2506.19847"), "17", ("orange", "D"), "OFT", "all"),
    "adapter": About("Bottleneck adapters", "h ← h + W_u f(W_d h + b_d) + b_u, behind a sublayer",
                     ("1902.00751", "2005.00247"), "04", ("vermillion", "P"), "adapters"),
    "parallel_adapter": About("Parallel adapters", "h ← h + s f(x W_down) W_up, h = sublayer(x)",
                              ("2110.04366",), "04", ("vermillion", "X", "--"), "parallel adapters"),
    "ia3": About("(IA)³", "K ← l_k ⊙ K, V ← l_v ⊙ V, γ(W₁ x) ← l_ff ⊙ γ(W₁ x)",
                 ("2205.05638",), "07", ("orange", ">"), "(IA)³", "all"),
    "loreft": About("LoReFT", "h ← h + Rᵀ (W h + b − R h) at the first and last positions of the prompt, R Rᵀ = I",
                    ("2404.03592",), "17", ("purple", "3"), "LoReFT"),
    "trainable_tokens": About("Trainable tokens", "E_t ← a trained row, for a few tokens t",
                              ("PEFT: https://huggingface.co/docs/peft/package_reference/trainable_tokens",),
                              "05", ("green", "3"), "tokens", "tokens"),
    "prefix": About("Prefix tuning", "K ← [P_K; K], V ← [P_V; V] in every block, P = MLP(P′)",
                    ("2101.00190",), "06", ("green", "v"), "prefix"),
    "prompt": About("Prompt tuning", "X ← [P_e; X], P vectors before the embedded input",
                    ("2104.08691",), "05", ("purple", "*"), "prompt"),
    "ptuning": About("P-tuning", "X ← [h₀ … h_i; e(x); h_i+1 … h_m; e(y)], h = MLP(LSTM(P))",
                     ("2103.10385",), "05", ("purple", "h"), "P-tuning"),
    "ptuning_v2": About("P-tuning v2", "K ← [P_K; K], V ← [P_V; V] in every block, P trained directly",
                        ("2110.07602",), "06", ("green", "d"), "P-tuning v2"),
    "probe": About("Linear probe", "p = softmax(W h + b) on what the frozen base computes, h; solved, not trained",
                   ("1610.01644",), "03", ("black", "p"), "probe"),
    # -- schemes
    "uniform": About("Uniform integers", "x̂ = s (q − z), q = clip(round(x/s) + z, 0, 2ᵇ − 1)",
                     ("1712.05877",), "10", ("sky", "o"), "integers"),
    "float": About("Small floating-point formats", "x̂ = ±2^(E − bias) (1 + M/2^m): FP16, BF16, FP8, FP4, MX, NVFP4",
                   ("2209.05433", "2310.10537"), "10", ("orange", "s"), "floats"),
    "nf4": About("NF4", "x̂ = s c[q], s = max|x| of 64 weights, c: quantiles of N(0, 1)",
                 ("2305.14314",), "13", ("blue", "D"), "NF4"),
    "gguf": About("GGUF blocks", "x̂ = d (q − z) + m, d in float16, or an integer times it: Q4_0, Q4_K, … of llama.cpp",
                  ("llama.cpp: https://github.com/ggml-org/llama.cpp",), "18", ("orange", "d"), "GGUF"),
    "gptq": About("GPTQ", "W_k ← W_k − (W_j − quant(W_j)) U_jk / U_jj for every later column k",
                  ("2210.17323", "2208.11580"), "12", ("vermillion", "^"), "GPTQ"),
    "awq": About("AWQ", "Q(W diag(s)) diag(s)⁻¹ X, s = mean|x|^α, α by search",
                 ("2306.00978",), "12", ("green", "v"), "AWQ"),
    "w8a8": About("W8A8", "y = s_x s_w (q_x q_wᵀ) + b, an exact product of integers",
                  ("2208.07339",), "11", ("purple", "h"), "W8A8"),
    "llm_int8": About("LLM.int8()", "X Wᵀ ≈ Σ_{h∈O} X_h W_hᵀ + s_x s_w Σ_{h∉O} q_x,h q_w,hᵀ, O: outlier columns",
                      ("2208.07339",), "11", ("purple", "P"), "LLM.int8()"),
    "zeroquant": About("ZeroQuant", "W8A8 in groups; below 8 bits min MSE(L_k(x), L̂_k(x)) block by block",
                       ("2206.01861",), "11", ("purple", "X"), "ZeroQuant"),
    "smoothquant": About("SmoothQuant", "(X diag(s)⁻¹) (diag(s) W), s_j = max|X_j|^α / max|W_j|^(1−α)",
                         ("2211.10438",), "11", ("purple", "*"), "SmoothQuant"),
    "fake_quant": About("Quantization-aware training", "y = x̂ Ŵᵀ + b, Ŵ = s (q − z), ∂Ŵ/∂W = 1 inside the range",
                        ("1712.05877", "1902.08153"), "14", ("black", "o"), "QAT"),
    "llm_qat": About("LLM-QAT", "min KL(p_teacher ‖ p_student) on text that the teacher writes",
                     ("2305.17888",), "14", ("black", "^", "--"), "LLM-QAT"),
    "peqa": About("PEQA", "Ŵ = (s₀ + Δs) ⊙ (q − z₀), only Δs is trained", ("2305.14152",), "14", ("black", "D"), "PEQA"),
}

ARMS: dict[str, About] = {                               # what the study compares that is no class of its own
    "frozen": About("The frozen base", "W ← W", (), "03", ("grey", "x"), "frozen base"),
    "lora_all": About("LoRA on all matrices", "W ← W + (α/r) B A for all six matrices of a block",
                      ("2106.09685",), "07", ("blue", "<"), "LoRA on all"),
    "qlora": About("QLoRA", "y = x Ŵᵀ + (α/r) x Aᵀ Bᵀ, Ŵ in NF4", ("2305.14314",), "13", ("vermillion", "s"), "QLoRA"),
    "qlora_all": About("QLoRA on all matrices", "y = x Ŵᵀ + (α/r) x Aᵀ Bᵀ, Ŵ in NF4, on all six matrices of a block",
                       ("2305.14314",), "13", ("vermillion", "8"), "QLoRA on all"),
    "loftq": About("LoftQ", "min ‖W − Q − A Bᵀ‖ by turns: Q = quant(W − A Bᵀ), then A Bᵀ = SVD_r(W − Q)",
                   ("2310.08659",), "13b", ("blue", "o"), "LoftQ"),
}


def about(name: str) -> About:
    """What is known of a method, scheme or arm. Raises KeyError, which says where to add it, if nothing is."""
    known = ABOUT | ARMS
    if name not in known:
        raise KeyError(f"tinypeft/study/about.py has no entry for {name!r}; add one to ABOUT so that tables and pictures can "
                       f"show it (there are {', '.join(known)})")
    return known[name]


def name_of(value: object) -> str:
    """The name in METHODS or SCHEMES of the class of `value`. Raises KeyError if its class is in neither."""
    for name, cls in (METHODS | SCHEMES).items():
        if type(value) is cls: return name
    raise KeyError(f"{type(value).__name__} is neither in METHODS nor in SCHEMES; add it there under a name")


# -- tables --------------------------------------------------------------------------------------------
def lesson_map() -> str:
    """Methods and schemes in the order of their lessons, as a Markdown table: lesson, title, equation, papers.
    Lessons are linked where the notebooks are (a checkout), for a page in their folder."""
    known = sorted(map(about, (*METHODS, *SCHEMES, "qlora", "loftq")), key=lambda a: a.lesson)
    return table(("lesson", "method or scheme", "equation", "papers"),
                 [(lesson(a.lesson), a.title, code(a.equation), linked(*a.papers)) for a in known])


def lesson(number: str) -> str:
    """A lesson's number, linked to its notebook if that exists."""
    notebooks = sorted((Path(__file__).parents[2] / "lessons").glob(f"{number}_*.ipynb"))
    return f"[{number}]({notebooks[0].name})" if notebooks else number


def class_link(cls: type, prefix: str) -> str:
    """The name of a class, linked to its file. prefix: path from the page to the checkout."""
    return f"[`{cls.__name__}`]({prefix}{cls.__module__.replace('.', '/')}.py)"


def code(equation: str) -> str:
    """The equation in a cell of a Markdown table, where a bar would end the cell."""
    return f"`{equation}`".replace("|", r"\|")


def linked(*papers: str) -> str:
    """Write links to papers, each an arXiv id, or "name: address"."""
    parts = [paper.partition(": ") for paper in papers]
    return ", ".join(f"[{name}]({address or f'https://arxiv.org/abs/{name}'})" for name, _, address in parts)
