"""What is loaded when: importing the package loads no network framework, and is quick."""

import subprocess
import sys

import pytest

FRAMEWORKS = "{'torch', 'tensorflow', 'onnx', 'openvino', 'scipy'}"


def loaded_by(statement: str) -> str:
    code = f"import sys\n{statement}\nprint(sorted({FRAMEWORKS} & set(sys.modules)))"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import consilium, consilium.cli",
        "from consilium.cli.verbs import VERBS, read_help; assert all(read_help(verb) for verb in VERBS)",
        "import consilium.networks.config, consilium.networks.parameters",
        "import consilium.tensorflow.installed",
        "import consilium.federation.site, consilium.federation.rounds",
    ],
)
def test_no_framework_is_loaded_by(statement: str) -> None:
    assert loaded_by(statement) == "[]"


def test_importing_the_package_takes_less_than_half_a_second() -> None:
    code = (
        "import time; start = time.process_time()\nimport consilium, consilium.federation.parameters\n"
        "print(time.process_time() - start)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(result.stdout) < 0.5
