"""Every verb teaches by its help and is documented; errors become one message and an exit code."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from consilium.cli.console import run_verb
from consilium.cli.verbs import VERBS, build_command, load_verb, read_help
from consilium.errors import ConfigurationError, DataError
from tests.cli.documentation import REFERENCE, render


def run(*arguments: str) -> int:
    return run_verb(build_command(), arguments)


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_explains_itself_and_each_of_its_options(verb: str) -> None:
    command = load_verb(verb)
    assert inspect.cleandoc(command.help or "") == read_help(verb), "what consilium --help lists"
    parts = getattr(command, "commands", {verb: command})
    for name, part in parts.items():
        assert len(part.help or "") > 30, name
        for parameter in part.params:
            assert parameter.name == "help" or parameter.help, f"{verb} {name}: {parameter.name}"


def test_the_reference_is_what_the_verbs_say() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == render(), "run: python -m tests.cli.documentation"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", text), verb


def test_an_unknown_verb_is_misuse() -> None:
    assert run("contuor") == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x: must be y; got z."), 2),
        (DataError("x: must be y; got z."), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (ValueError("bug"), 1),
    ],
)
def test_errors_become_a_message_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise error

    class Command:
        def main(self, **_: object) -> None:
            fails()

    assert run_verb(Command(), []) == code
    assert capsys.readouterr().err.strip()


def test_importing_the_package_loads_no_network_framework() -> None:
    heavy = "{'torch', 'tensorflow', 'scipy'}"
    code = f"import sys, consilium, consilium.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_dataset_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", str(tmp_path / "nothing")) != 0
    assert "consilium import" in capsys.readouterr().err
