"""Writes the parts of pages that the code itself knows: the settings and the commands.

    python docs/generate.py

A test says when a page is no longer what the code says.
"""

import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import click  # noqa: E402

from hybrid.cli import group  # noqa: E402
from hybrid.config import PREFIX, Settings  # noqa: E402

REFUSED = ("\0", -1e99)
"""Values that no setting takes, so that it says what it does take."""


def settings() -> str:
    """The table of all settings, in the order of the code."""
    rows = ["| key | default | what it is, and may be |", "|---|---|---|"]
    for setting in fields(Settings):
        assert setting.default is not MISSING
        cells = (
            f"`{PREFIX}{setting.name.upper()}`",
            _shown(setting.default),
            f"{setting.metadata['doc']}: *{_allowed(setting.metadata['check'])}"
            + "; empty is off" * setting.metadata["off"]
            + "*",
        )
        rows.append("| " + " | ".join(cells).replace("||", "|") + " |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _allowed(check: Any) -> str:
    """What a setting says when it gets what it cannot take."""
    for value in REFUSED:
        try:
            check(value)
        except (TypeError, ValueError) as error:
            told = str(error)
            if told.startswith("must "):
                return re.sub("^must (be |have )?", "", told)
            if " is no " in told:
                return "each " + told.partition(" is no ")[2]
    raise AssertionError(f"{check} does not say what it takes")


def commands() -> str:
    """What each command says to --help."""
    context = click.Context(group, info_name="flask hybrid", terminal_width=90)
    told = [group.help or ""]
    for name, command in sorted(group.commands.items()):
        inner = click.Context(command, info_name=name, parent=context, terminal_width=90)
        text = command.get_help(inner).strip()
        told.append(f"## flask hybrid {name}\n\n```text\n{text}\n```")
    return "\n\n".join(told)


PARTS = {"configuration.md": settings, "cli.md": commands}


def page(name: str) -> str:
    """A page with its generated part as the code has it now."""
    text = (DOCS / name).read_text()
    begin = "<!-- what follows is written by docs/generate.py -->\n\n"
    end = "\n\n<!-- to here -->"
    made, count = re.subn(
        f"(?<={re.escape(begin)}).*?(?={re.escape(end)})",
        lambda _: PARTS[name](),
        text,
        flags=re.DOTALL,
    )
    assert count == 1, f"{name} has no place for it"
    return made


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(page(name))
