"""The node's file: what it says is checked, with the place and the remedy."""

from pathlib import Path

import pytest

from consilium.cli.node import EXAMPLE
from consilium.errors import ConfigurationError
from consilium.node.settings import Sender, read_node_settings

SMALLEST = """
folder = "node"
models = ["m"]
[[allow]]
ae_title = "PACS"
addresses = ["10.0.0.0/24", "::1"]
[[send]]
ae_title = "PACS"
host = "pacs"
port = 104
"""


def read(folder: Path, text: str) -> object:
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return read_node_settings(path)


def test_the_example_is_a_file_that_can_be_run(tmp_path: Path) -> None:
    settings = read_node_settings_of(tmp_path, EXAMPLE)
    assert settings.folder == tmp_path / "node"
    uncommented = EXAMPLE.replace("# [[", "[[").replace("# url", "url").replace("# token", "token")
    uncommented = uncommented.replace("# days", "days").replace("# every", "every").replace("# tls", "tls")
    everything = read_node_settings_of(tmp_path, uncommented)
    assert len(everything.send) == 2
    assert everything.sources[0].url == "https://pacs.example/dicom-web"
    assert everything.receive.tls is not None


def read_node_settings_of(folder: Path, text: str):  # type: ignore[no-untyped-def]
    return read(folder, text)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("folder", "fodler"), "fodler"),
        (('"m"', "3"), "models"),
        (('folder = "node"', 'folder = "node"\nformat = "pdf"'), "pdf"),
        (("port = 104", 'port = "104"'), "send.port"),
        (("port = 104", "port = 70000"), "70000"),
        (('host = "pacs"\n', ""), "host"),
        (("10.0.0.0/24", "pacs.example"), "pacs.example"),
        (('title = "PACS"\naddr', 'title = "A TITLE THAT IS LONG"\naddr'), "16"),
        (("[[send]]", "[send]"), "send"),
        (('ae_title = "PACS"\nhost = "pacs"\nport = 104', 'url = "http://pacs/dicom"'), "https"),
        (('ae_title = "PACS"\nhost = "pacs"\nport = 104', 'url = "https://me:secret@pacs/d"'), "token_file"),
        (("[[allow]]", "[receive]\nquiet_s = 20\ninterrupted_s = 5\n[[allow]]"), "interrupted_s"),
        (("[[allow]]", "[receive]\ntls = { key = 'k' }\n[[allow]]"), "certificate"),
        (("= [", "= "), "TOML"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, change: tuple[str, str], found: str) -> None:
    text = SMALLEST.replace(*change)
    assert text != SMALLEST
    with pytest.raises(ConfigurationError, match=found) as raised:
        read(tmp_path, text)
    assert "secret" not in str(raised.value)


def test_nobody_to_listen_to_or_to_send_to_is_refused(tmp_path: Path) -> None:
    head, _, rest = SMALLEST.partition("[[allow]]")
    allow, _, send = rest.partition("[[send]]")
    with pytest.raises(ConfigurationError, match="allow"):
        read(tmp_path, f"{head}[[send]]{send}")
    with pytest.raises(ConfigurationError, match="send"):
        read(tmp_path, f"{head}[[allow]]{allow}")


def test_addresses_are_networks_of_either_kind() -> None:
    sender = Sender(ae_title="PACS", addresses=("10.0.0.0/24", "::1"))
    assert sender.may_come_from("10.0.0.9")
    assert sender.may_come_from("::ffff:10.0.0.9")
    assert sender.may_come_from("::1")
    assert not sender.may_come_from("10.0.1.9")
    assert not sender.may_come_from("no address")
