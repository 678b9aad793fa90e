"""Akool's dialect: what its pages document and its clients send, and nothing else."""

from __future__ import annotations

import pytest

from tests.wire import pairs


@pytest.mark.parametrize("name", pairs.names("akool"))
def test_akool_keeps_the_golden_pair(name):
    pairs.check("akool", name)
