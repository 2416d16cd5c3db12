"""Writes docs/reference/command-line.md from the verbs themselves: ``python -m tests.cli.documentation``."""

import inspect
import re
from typing import Any

from consilium.cli.verbs import VERBS, load_verb
from tests.data import REPOSITORY

REFERENCE = REPOSITORY / "docs" / "reference" / "command-line.md"
HEAD = """# Command line

Made from the verbs' own help by `python -m tests.cli.documentation`; a test fails when it is stale.
Exit codes: 0 done, 1 the data or the run failed, 2 misuse, 130 interrupted (what was finished is kept).

"""


def plain(text: str | None) -> str:
    """Help without rich's markup."""
    return re.sub(r"\[/?(bold|dim|italic)\]", "", inspect.cleandoc(text or "")).replace("\f", "").strip()


def parameter_rows(command: Any) -> list[str]:
    """One row per argument and option."""
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        option = parameter.param_type_name == "option"
        name = ", ".join(parameter.opts) if option else str(parameter.name).upper()
        default = parameter.default
        shown = "" if default in (None, "", False, ()) or not option or callable(default) else f"`{default}`"
        rows.append(f"| `{name}` | {plain(parameter.help).replace('|', chr(92) + '|')} | {shown} |")
    return rows


def section(title: str, command: Any, level: str) -> str:
    """Heading, text and table of one verb."""
    text = f"{level} `consilium {title}`\n\n{plain(command.help)}\n"
    rows = parameter_rows(command)
    if rows:
        text += "\n| | meaning | default |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    return text


def render() -> str:
    """The whole page."""
    parts = []
    for verb in VERBS:
        command = load_verb(verb)
        parts.append(section(verb, command, "##"))
        for name, part in sorted(getattr(command, "commands", {}).items()):
            parts.append(section(f"{verb} {name}", part, "###"))
    return HEAD + "\n".join(parts)


if __name__ == "__main__":
    REFERENCE.write_text(render(), encoding="utf-8")
