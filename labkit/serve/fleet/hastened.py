"""The alert rules at another speed: minutes become parts of a second, so that a test sees an alert fire and clear."""

from __future__ import annotations

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def hastened(rules: str, factor: float) -> str:
    """Rules of Prometheus in which time runs faster: every range, offset and `for` is divided; thresholds stay.

    Prometheus must then read and evaluate as much faster: a range needs two samples or more.

    Args:
        rules: the text of a rule file.
        factor: how much faster, above 0.

    Raises ValueError for another factor.

    >>> print(hastened("expr: rate(labkit_requests_total[5m]) > 3\\nfor: 1m", 100))
    expr: rate(labkit_requests_total[3000ms]) > 3
    for: 600ms
    """
    if not factor > 0:
        raise ValueError(f"factor is {factor!r}; give a number above 0")

    def divided(found: re.Match[str]) -> str:
        before, count, unit, after = found.groups()
        return f"{before}{max(1, round(int(count) * UNITS[unit] * 1000 / factor))}ms{after}"

    return re.sub(r"(\[|\boffset |\bfor: )(\d+)([smhd])(\]|\b)", divided, rules)
