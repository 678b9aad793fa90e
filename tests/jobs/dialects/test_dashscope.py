"""DashScope's dialect: what its pages document and its clients send, and nothing else."""

from __future__ import annotations

import pytest

from tests.wire import pairs


@pytest.mark.parametrize("name", pairs.names("dashscope"))
def test_dashscope_keeps_the_golden_pair(name):
    pairs.check("dashscope", name)
