"""The doctor's findings and report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "suspicious", "wrong", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One check: its status, what was measured, and what to do about it (empty if nothing)."""

    check: str
    status: Status
    measured: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings about one network; ``str(report)`` is a table."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong or suspicious."""
        return not any(finding.status in ("wrong", "suspicious") for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        return {finding.check: finding for finding in self.findings}[check]

    def __str__(self) -> str:
        rows = [("check", "status", "measured"), *((f.check, f.status, f.measured) for f in self.findings)]
        first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
        lines = [f"{rows[0][0]:<{first}}{rows[0][1]:<{second}}{rows[0][2]}"]
        for finding in self.findings:
            head = f"{finding.check:<{first}}{finding.status:<{second}}"
            lines += textwrap.wrap(head + finding.measured, 118, subsequent_indent=" " * len(head)) or [head]
            if finding.remedy:
                lines += textwrap.wrap(
                    finding.remedy,
                    118,
                    initial_indent=" " * len(head) + "-> ",
                    subsequent_indent=" " * len(head) + "   ",
                )
        return "\n".join(lines)
