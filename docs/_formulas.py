"""Formulas of docstrings, written in unicode, as LaTeX."""

import re
import unicodedata

_LETTERS = (
    r"\alpha \beta \gamma \delta \varepsilon \zeta \eta \theta \kappa \lambda \mu \nu \xi \pi \rho "
    r"\sigma \tau \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Pi \Sigma \Phi \Psi \Omega"
)
_SYMBOLS = (
    r"\le \ge \approx \ne \propto \in \to \leftarrow \infty \partial \nabla \int \cdot \times \pm "
    r"\circ \odot \oplus \equiv \sim \Vert - \ldots \surd \ell \mathcal{K} \mathbb{R} \mapsto "
    r"\langle \rangle \preceq \otimes"
)
_NAMES = {
    **dict(zip("αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ", _LETTERS.split(), strict=True)),
    **dict(zip("≤≥≈≠∝∈→←∞∂∇∫·×±∘⊙⊕≡∼‖−…√ℓ𝒦ℝ↦⟨⟩≼⊗", _SYMBOLS.split(), strict=True)),
}
_FRACTIONS = {"½": r"\tfrac12", "¼": r"\tfrac14", "⅓": r"\tfrac13"}
_SUPER = dict(
    zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱᵀᵏᵈᵗʳˢᵐᵖᵃᵇᴷʸʲᵉᵍˣᶻᴺ", "0123456789+-()niTkdtrsmpabKyjegxzN", strict=True)
)
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₖᵢⱼₙₜₚₘₛᵣₐₑₓₗₒᵤᵥᵦ", "0123456789+-()kijntpmsraexlouvb", strict=True))
_FUNCTIONS = frozenset("log exp max min sup inf det sin cos tanh lim arg".split())
_OPERATORS = frozenset("Var Cov KL ELBO argmax argmin erf logit diag tr sign sd".split())


def is_formula(lines: list[str]) -> bool:
    """Whether a block of a docstring is mathematics, and no code."""
    text = "".join(lines)
    code = ">>>" in text or "def " in text or "#" in text
    return not code and (not text.isascii() or bool(re.search(r"\blog [pq]\(", text)))


_ACCENTS = {"\u0303": r"\tilde", "\u0302": r"\hat", "\u0304": r"\bar"}
_PARTS = re.compile(
    r"`[^`]*`|<=|>=|->|~|[A-Za-z∇Σ]²?_\{[^}]*\}|[A-Za-zΣ]_[A-Za-z0-9]+(?![A-Za-z_])|.[\u0302-\u0304]"
    r"|[A-Za-z_][A-Za-z_']*(?![\u0302-\u0304])|\d+(?:\.\d+)?| +|."
)
_SIGNS = {"<=": r"\le ", ">=": r"\ge ", "->": r"\to ", "~": r"\sim ", "*": "^{*}"}


def latex(line: str) -> str:
    """Return a line of a formula in LaTeX."""
    line = "".join(unicodedata.normalize("NFD", c) if c in "ẑĥȳÊ" else c for c in line.strip())
    return "".join(map(_token, _PARTS.findall(line)))


def _token(token: str) -> str:
    if token.isspace():
        return r"\qquad " if len(token) > 2 else " "
    if token in _SIGNS:
        return _SIGNS[token]
    indexed = re.fullmatch(r"(.)(²?)_(?:\{([^}]*)\}|([A-Za-z0-9]+))", token)
    if indexed:
        below = latex(indexed[3]) if indexed[3] else indexed[4]
        below = below if len(below) == 1 or indexed[3] else r"\text{" + below + "}"
        return _token(indexed[1]).strip() + ("^{2}" if indexed[2] else "") + "_{" + below + "}"
    if len(token) == 2 and token[1] in _ACCENTS:
        return _ACCENTS[token[1]] + "{" + token[0] + "}"
    if token[0] == "`":
        return r"\texttt{" + token[1:-1].replace("_", r"\_") + "}"
    if token[0].isascii() and token[0].isalpha():
        if token in _FUNCTIONS:
            return "\\" + token + " "
        if token in _OPERATORS:
            return r"\operatorname{" + token + "}"
        if len(token.rstrip("'")) == 1:
            return token
        return r"\text{ " + token.replace("_", r"\_") + " }"
    if token in _SUPER:
        return "^{" + _SUPER[token] + "}"
    if token in _SUB:
        return "_{" + _SUB[token] + "}"
    if token in _FRACTIONS:
        return _FRACTIONS[token]
    if token == "′":
        return "'"
    if token in "#%&$":
        return "\\" + token
    if token in "{}":
        return "\\" + token
    if token in _NAMES:
        return _NAMES[token] + " "
    return token


def joined(text: str) -> str:
    """Write what stands behind each other as one superscript, or one subscript; a Σ with one is a sum."""
    text = re.sub(r"(?:\^\{[^{}]*\}){2,}", lambda m: "^{" + re.sub(r"[\^{}]", "", m[0]) + "}", text)
    text = re.sub(r"(?:_\{[^{}]*\}){2,}", lambda m: "_{" + re.sub(r"[_{}]", "", m[0]) + "}", text)
    return re.sub(r"\\Sigma ?_\{", r"\\sum_{", text)


def block(lines: list[str]) -> list[str]:
    """Return a formula as a directive."""
    rows = [joined(latex(line)) for line in lines if line.strip()]
    body = rows[0] if len(rows) == 1 else r"\begin{array}{l}" + r" \\ ".join(rows) + r"\end{array}"
    return [".. math::", "", "   " + body, ""]
