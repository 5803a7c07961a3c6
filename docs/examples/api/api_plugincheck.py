"""Check addresses in a database, and say at the start if it cannot be made or comes too late."""

from pathlib import Path

from minismtp import Envelope, PluginCheck, hookimpl, plugin
from minismtp.cli.check import check
from minismtp.config import Config


@plugin
class Seen:
    path: Path

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        if problem := check.cannot_write(self.path.parent):
            check.error(f"path: {problem}")
        if early := check.above_with("deliver"):
            check.warn(f"sees nothing that {early[0]} stores: put its table above")

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        with self.path.open("a") as file:
            print(envelope.sender, file=file)


CONFIGURATION = """
state_directory = "state"
plugin_path = ["{plugins}"]
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
[[plugins]]
use = "maildir"
path = "mail/{{local}}"
[[plugins]]
use = "api_plugincheck"
path = "file/seen"
"""


def test_place_and_order_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = CONFIGURATION.format(plugins=Path(__file__).parent)
    found = [str(each) for each in check(Config.parse(text, tmp_path / "minismtp.toml"))]
    place = f"{tmp_path}/minismtp.toml: plugins[1] api_plugincheck"
    file = f"{tmp_path}/file is a file; expected a directory"
    assert f"error: {place}, line 13: path: {file}" in found
    assert (
        f"warning: {place}, line 11: sees nothing that maildir stores: put its table above" in found
    )
