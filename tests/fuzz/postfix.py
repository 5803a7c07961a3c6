"""The configuration of a Postfix, which an administrator may have got from somebody else."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from fuzz.target import target
from minismtp.cli.import_postfix.mapping import migrated
from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.text import PostfixError

_READERS: Final = ("expansion", "lookup_table", "main_cf", "master_cf", "text")
_PARTS: Final = ("access_tables", "header_checks", "leftovers", "notation", "restrictions")


@target(
    *(f"cli.postfix_files.{name}" for name in _READERS),
    *(f"cli.import_postfix.{name}" for name in _PARTS),
    raises=(PostfixError,),
    memory=1 << 24,
)
def postfix_configuration(data: bytes) -> None:
    """Read main.cf, master.cf and a table, which stand one after the other, with NUL between."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "etc" / "postfix"
        directory.mkdir(parents=True)
        parts = [*data.split(b"\0", 2), b"", b""]
        for file, content in zip(("main.cf", "master.cf", "table"), parts, strict=False):
            (directory / file).write_bytes(content)
        migrated(PostfixDirectory.read(directory), Path("/var/lib/minismtp")).draft.text("")
