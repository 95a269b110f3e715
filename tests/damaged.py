"""Damaged files: reading one ends in a named error, or in something that can be used."""
import pytest

__all__ = ["read_or_refused", "spliced"]


def spliced(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The content after changes (place, how many bytes are cut out there, bytes that are put in)."""
    for at, cut, new in changes: content = content[:at] + new + content[at + cut:]
    return content


def read_or_refused(read, judge, error, says, examples, *strategies):
    """Draw examples of the strategies. `read(*drawn)` raises `error` with `says` in its message, or `judge` takes what it
    returns. Both must happen."""
    hypothesis, st = pytest.importorskip("hypothesis"), pytest.importorskip("hypothesis.strategies")
    outcomes = set()

    @hypothesis.settings(max_examples=examples)
    @hypothesis.given(st.tuples(*strategies))
    def check(drawn):
        try: result = read(*drawn)
        except error as e:
            outcomes.add("refused")
            assert says in str(e)
        else:
            outcomes.add("read")
            judge(result)
    check()
    assert outcomes == {"read", "refused"}
