"""A process that is to reach nothing beyond this machine."""

from __future__ import annotations

import socket
from typing import Any

HERE = ("127.0.0.1", "::1", "localhost", None, "")


def shut() -> None:
    """From here on Python's sockets make no connection beyond this machine: what asks for one fails at once, as without a network.

    This finds mistakes. It is no fence against code that wants out: another process, or a library with sockets of its own.
    """

    def here(family: int, address: Any) -> bool:
        return family not in (socket.AF_INET, socket.AF_INET6) or address[0] in HERE

    def guarded(name: str, place: int) -> Any:
        original = getattr(socket.socket, name)

        def call(self: socket.socket, *args: Any) -> Any:
            if not here(self.family, args[place]):
                raise OSError(f"the rehearsal is offline, and something asks for {args[place][0]}")
            return original(self, *args)

        return call

    def looked_up(name: str) -> Any:
        original = getattr(socket, name)

        def call(host: Any, *rest: Any, **more: Any) -> Any:
            if host not in HERE:
                raise socket.gaierror(socket.EAI_NONAME, f"the rehearsal is offline, and something asks for {host}")
            return original(host, *rest, **more)

        return call

    for name, place in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
        setattr(socket.socket, name, guarded(name, place))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, looked_up(name))
