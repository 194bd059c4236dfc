"""A server of bytes: it answers each decision that it is asked for with the same bytes, and all else as a Redis
would."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

INFO = b"redis_version:7.0.0\r\ncluster_enabled:0\r\n"


class Talker:
    """A server of this machine.

    answer: What every EVALSHA gets: bytes, or a function that returns them.
    to_all: What every command gets instead.
    drip: Seconds between the bytes of an answer to an EVALSHA; 0: all at once.
    """

    def __init__(self, answer=b"", to_all=b"", drip=0.0):
        self.answer = answer
        self.drip = drip
        self.to_all = to_all
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection):
        with contextlib.closing(connection), contextlib.suppress(OSError):
            while asked := connection.recv(65536):
                if self.to_all:
                    connection.sendall(self.to_all)
                    continue
                for command in asked.split(b"\r\n")[2::2]:
                    if command in (b"EVALSHA", b"EVAL"):
                        self.asked += 1
                        answer = self.answer() if callable(self.answer) else self.answer
                        step = 1 if self.drip else max(1, len(answer))
                        for begin in range(0, len(answer), step):
                            time.sleep(self.drip)
                            connection.sendall(answer[begin : begin + step])
                    elif command == b"INFO":
                        connection.sendall(b"$%d\r\n%b\r\n" % (len(INFO), INFO))
                    elif command in (b"CLIENT", b"SELECT"):
                        connection.sendall(b"+OK\r\n")

    def stop(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
