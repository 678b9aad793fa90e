"""Zoetrope's settings, processes and wiring."""

from __future__ import annotations
