"""doctor.py: a NumPy that multiplies wrongly is found, and the verdict says what to do."""
from pathlib import Path

import numpy as np
import pytest

from tinypeft.commands import doctor


def test_this_numpy_multiplies_rightly():
    assert doctor.own_product_error() < 1e-6


def test_a_user_without_a_home_has_no_cache(no_home, monkeypatch):
    assert doctor.cache().startswith("none: this user has no home directory")
    monkeypatch.setenv("TINYPEFT_CACHE", "/a/b")
    assert doctor.cache() == str(Path("/a/b"))


@pytest.mark.parametrize("fault", [lambda C: 0 * C, lambda C: C * np.float32(1.001), np.triu, lambda C: C * np.nan])
def test_a_wrong_product_of_a_matrix_with_its_transpose_is_found(fault, monkeypatch):
    matmul = np.matmul

    def syrk(A, B, *args, **kwargs):                     # as the faulty wheel: float32, and one buffer behind both factors
        C = matmul(A, B, *args, **kwargs)
        return fault(C) if A.dtype == np.float32 and np.may_share_memory(A, B) else C
    monkeypatch.setattr(doctor.np, "matmul", syrk)
    assert not doctor.own_product_error() < 1e-5
    facts = doctor.report()
    assert "float32 and float64 differ by" in facts["A @ A.T"]
    assert "Install another release of NumPy" in facts["verdict"] and "OPENBLAS_CORETYPE" in facts["verdict"]
