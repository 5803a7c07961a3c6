"""Keep a list of words in a file, and report a list that does nothing."""

from pathlib import Path

from minismtp import Message, PluginCheck, Reject, hookimpl, plugin
from minismtp.cli.check import check
from minismtp.config import Config


@plugin
class Words:
    path: Path

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        if not self.path.exists():
            check.error(f"path: {self.path} does not exist; expected a word a line")
        elif not self.path.read_text().split():
            check.warn(f"path: {self.path} has no words, so all mail passes; add one a line")
        check.comes_after("rspamd", lest="sees the subject that rspamd may have changed")

    @hookimpl
    def on_message(self, message: Message) -> None:
        subject = message.headers.get("Subject").lower()
        if any(word in subject for word in self.path.read_text().lower().split()):
            raise Reject("the subject has a word that is not wanted here")


CONFIGURATION = """
state_directory = "state"
plugin_path = ["{plugins}"]
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
[[plugins]]
use = "on_check"
path = "words"
"""


def test_missing_list_is_an_error_with_its_line(tmp_path: Path) -> None:
    text = CONFIGURATION.format(plugins=Path(__file__).parent)
    problems = check(Config.parse(text, tmp_path / "minismtp.toml"))
    errors = [str(each.mistake) for each in problems if each.severity == "error"]
    place = f"{tmp_path}/minismtp.toml: plugins[0] on_check, line 10: path"
    assert errors == [f"{place}: {tmp_path}/words does not exist; expected a word a line"]
