"""report.html."""
from __future__ import annotations
from typing import Any
def render(report: dict[str, Any]) -> str:
    return "<p>" + str(len(report))
