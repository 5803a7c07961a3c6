"""An LMTP or SMTP server that sends the replies of a test."""

from __future__ import annotations

import socket

from fakes import Wire


class Script:
    """A server that sends given replies; `heard` has its input.

    `replies` are by verb or by recipient; `keywords` are separated by commas.
    """

    def __init__(self, *, keywords: str = "8BITMIME", **replies: str) -> None:
        self.heard: list[str] = []
        self.content = b""
        self._keywords = keywords
        self._replies = replies

    def __call__(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        sock.sendall(self._answer("greeting", "220 lmtp.example"))
        while line := wire.read_until(b"\r\n"):
            verb = line[:4].decode()
            self.heard.append(line.decode().strip())
            match verb:
                case "LHLO" | "EHLO" if "lhlo" not in self._replies:
                    lines = ["lmtp.example", *self._keywords.split(",")]
                    told = "".join(f"250-{each}\r\n" for each in lines)
                    sock.sendall(f"{told}250 HELP\r\n".encode())
                case "DATA":
                    sock.sendall(answer := self._answer("data", "354 go on"))
                    if answer.startswith(b"354"):
                        self.content = wire.read_until(b"\r\n.\r\n")
                        if not (reply := self._answer("end", "250 2.0.0 stored")).strip():
                            return  # hangs up between the dot and the reply
                        sock.sendall(reply)
                case "RCPT":
                    box = line.decode().partition("<")[2].partition(">")[0]
                    usual = self._replies.get("rcpt", "250 ok")
                    sock.sendall(self._answer(box, usual))
                case _:
                    sock.sendall(self._answer(verb.lower(), "250 ok"))

    def _answer(self, step: str, usual: str) -> bytes:
        return f"{self._replies.get(step, usual)}\r\n".encode()
