"""Writes a ledger into a service's database as the service itself would, and says what was acknowledged.

Runs inside a container of the service (ledger.py starts it there): what it connects to is the sidecar and, behind it,
the pooler, with the addresses and the password that the platform gave to the service. Each of a few writers commits one
row after the other, in a transaction of its own, with an id that no other row had. Prints a line of JSON per event:

    {"e": "ready"}                                  all writers are connected
    {"e": "ack", "t": 1764240000.123, "id": 17}     COMMIT of id 17 returned
    {"e": "error", "t": ..., "id": 18, "text": ...} it did not; whether the row is there is not known
    {"e": "end"}                                    no writer runs any more

An id is never written again, whatever became of it. Ends when its standard input ends. Standard library and psycopg.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
from typing import Any

import psycopg

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
LOCK = threading.Lock()


def say(**event: Any) -> None:
    with LOCK:
        sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
        sys.stdout.flush()


class Watchdog:
    """Breaks connections that have not answered in time, so that their writers see an error and go elsewhere."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.busy: dict[int, tuple[float, psycopg.Connection[Any]]] = {}
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while True:
            time.sleep(0.1)
            for writer, (since, connection) in list(self.busy.items()):
                if time.monotonic() - since > self.limit:
                    self.busy.pop(writer, None)
                    with (
                        contextlib.suppress(OSError, psycopg.Error),
                        socket.socket(fileno=os.dup(connection.fileno())) as end,
                    ):
                        end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def over(self, writer: int, connection: psycopg.Connection[Any]) -> Any:
        self.busy[writer] = (time.monotonic(), connection)
        try:
            yield
        finally:
            self.busy.pop(writer, None)


class Ledger:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ids = itertools.count(options.first)
        self.stop = threading.Event()
        self.ready = threading.Barrier(options.writers, action=lambda: say(e="ready"))
        self.watchdog = Watchdog(options.limit)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            sslmode=os.environ.get("PGSSLMODE", "disable"),
            connect_timeout=3,
            prepare_threshold=None,
            application_name="ledger",
        )

    def write(self, number: int) -> None:
        connection: psycopg.Connection[Any] | None = None
        pause, begun = FIRST_PAUSE, False
        while not self.stop.is_set():
            identifier = None
            try:
                connection = connection or self.connect()
                if not begun:
                    begun = True
                    self.ready.wait(60)
                with LOCK:
                    identifier = next(self.ids)
                with self.watchdog.over(number, connection):
                    connection.execute(
                        "INSERT INTO drill_ledger (run, id) VALUES (%s, %s)", (self.options.run, identifier)
                    )
                    connection.commit()
                say(e="ack", t=time.time(), id=identifier)
                pause = FIRST_PAUSE
                self.stop.wait(self.options.interval)
            except psycopg.Error as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                say(e="error", t=time.time(), id=identifier, state=error.sqlstate, text=text[:300])
                if connection is not None:
                    with contextlib.suppress(psycopg.Error):
                        connection.close()
                connection = None
                self.stop.wait(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, LONGEST_PAUSE)

    def run(self) -> None:
        writers = [
            threading.Thread(target=self.write, args=(number,), daemon=True) for number in range(self.options.writers)
        ]
        for one in writers:
            one.start()
        sys.stdin.read()
        self.stop.set()
        for one in writers:
            one.join(self.options.limit + 5)
        say(e="end")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", required=True, help="name of this ledger, part of each row's key")
    parser.add_argument("--first", type=int, default=1, help="first id; default: %(default)s")
    parser.add_argument("--writers", type=int, default=4, help="connections; default: %(default)s")
    parser.add_argument("--interval", type=float, default=0.05, help="pause of a writer, seconds; default: %(default)g")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds for a transaction; default: %(default)g")
    Ledger(parser.parse_args()).run()


if __name__ == "__main__":
    main()
