"""Numbers as text and rows as tables, for a study's page, its answer, its plots and `lm.tables.compare`."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from lm.base.numbers import LARGEST_LOSS
from lm.tables.stats import Difference, Estimate

# Holm-adjusted p below which a difference is called more than seed noise.
SIGNIFICANT = 0.05
Rows = Sequence[Sequence[str]]


def mean_sd(estimate: Estimate | None, digits: int = 2) -> str:
    """`72.13 ± 0.21`; without sd for one seed; empty for none."""
    if estimate is None:
        return ""
    return number(estimate.mean, digits) + ("" if estimate.sd is None else f" ± {number(estimate.sd, digits)}")


def number(value: float | None, digits: int) -> str:
    """A fixed number of decimals, fewer for huge values; empty for None."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def signed(value: float, digits: int = 4) -> str:
    """A number with its sign, and 0 without one."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else f"{0:.{digits}f}"


def percent(nats: float) -> str:
    """The change of perplexity that a difference in nats is, as `-2.6 %`."""
    return f"{signed(100 * math.expm1(min(nats, LARGEST_LOSS)), 1)} %"


def interval(difference: Difference | None) -> str:
    """`-0.0263 [-0.0301, -0.0225]` in nats; without the interval where there is none."""
    if difference is None:
        return ""
    text = signed(difference.mean)
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{signed(difference.low)}, {signed(difference.high)}]"


def p_text(p: float) -> str:
    """`= 0.012` or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def verdict(difference: Difference | None) -> str:
    """Whether a difference exceeds seed noise, in a few words."""
    if difference is None:
        return "nothing to compare"
    if difference.n == 1:
        return "n = 1: cannot tell from seed noise"
    if difference.p is None:
        return "no spread over seeds: cannot test"
    p = difference.p if difference.p_holm is None else difference.p_holm
    noise = "more than" if p < SIGNIFICANT else "within"
    unpaired = ", unpaired" if difference.welch else ""
    return f"{noise} seed noise (Holm-adjusted p {p_text(p)}, n = {difference.n}{unpaired})"


def one_line(text: str) -> str:
    """Text without line breaks, which would end a row of a table."""
    return " ".join(text.split()) if not text.isprintable() else text


def markdown(header: Sequence[str], rows: Rows, text_columns: int) -> str:
    """A Markdown table; the first `text_columns` columns are aligned left, the others right."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    lines = [[one_line(entry).replace("|", "\\|") for entry in row] for row in (header, rule, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 1 for c in text)


def aligned(header: Sequence[str], rows: Rows, text_columns: int) -> str:
    """The same table in columns of fixed width, for a terminal."""
    lines = [[one_line(entry) for entry in row] for row in (header, *rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    out = ""
    for line in lines:
        entries = [
            text + " " * (width - _width(text)) if i < text_columns else " " * (width - _width(text)) + text
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        out += "  ".join(entries).rstrip() + "\n"
    return out
