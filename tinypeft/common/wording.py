"""Words beside numbers."""

__all__ = ["counted"]


def counted(n: int, noun: str) -> str:
    """Return "1 row", "2,000 rows" or "2 classes"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith('s') else 's'}"
