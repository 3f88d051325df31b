"""One line of the doctor's report."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`fail` is broken, `look` may be meant so, `skip` could not be looked at."""

    verdict: Literal["ok", "skip", "look", "fail"]
    subject: str
    says: str
    fix: str = ""
