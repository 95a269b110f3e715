"""wording.py: one is no plural."""
from tinypeft.common.wording import counted


def test_one_is_no_plural():
    assert [counted(n, "row") for n in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert counted(1, "class") == "1 class" and counted(3, "class") == "3 classes"
