"""Starts Mailman's runners as forks of a process that has already imported Mailman.

usage: mailman_fork_server.py SOCKET

Most of the time that a runner takes to start is spent on its imports. A fork gets
them for free, and is otherwise the same process: it has its own memory, database,
configuration and log, and it runs the same `main` as the command `runner`.

A client connects to the Unix socket and sends one line of JSON with the runner's
`arguments`, its working `directory`, and the file for its `output`. The response is
one line with its process id. When the runner exits, a second line tells its exit
status. The runner and its workers are killed when the client disconnects, and when
this process ends, so a test that is killed leaves nothing behind.

Runners have a low priority. They take most of the CPU time of all tests, and no test
depends on their speed, while others run into timeouts of a fraction of a second.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys

import mailman

# Some modules read Mailman's configuration when they are imported, so only a runner can import them.
NOT_PRELOADED = ("mailman.rest.", "mailman.runners.", "mailman.testing.", "mailman.database.alembic.")
# What a runner imports in addition to Mailman's own modules.
ALSO_PRELOADED = (
    "alembic.command",
    "falcon",
    "gunicorn.app.base",
    "gunicorn.arbiter",
    "gunicorn.glogging",
    "gunicorn.workers.sync",
    "psycopg2",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "zope.configuration.xmlconfig",
)
PR_SET_PDEATHSIG = 1
NICENESS = 5


def preload():
    modules = pkgutil.walk_packages(mailman.__path__, "mailman.", onerror=lambda name: None)
    names = [module.name for module in modules if ".tests" not in module.name and ".docs" not in module.name]
    for name in [*ALSO_PRELOADED, *(name for name in names if not f"{name}.".startswith(NOT_PRELOADED))]:
        # A module that can't be imported yet is imported by the runner if it needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # A collection in a fork would otherwise write to, and so copy, the memory of all modules.
    gc.collect()
    gc.freeze()


class ForkServer:
    """Serves clients, each of which has at most one runner."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.clients = set()

    def serve(self):
        while True:
            for key, _ in self.selector.select():
                key.data()

    def accept(self):
        client, _ = self.listener.accept()
        request = client.makefile().readline()
        if not request:
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            self.selector.close()
            self.listener.close()
            for other in [client, *self.clients]:
                other.close()
            run(**json.loads(request))
        self.clients.add(client)
        exited = os.pidfd_open(pid)
        client.sendall(f"{pid}\n".encode())
        self.selector.register(client, selectors.EVENT_READ, lambda: self.kill(pid, client))
        self.selector.register(exited, selectors.EVENT_READ, lambda: self.reap(pid, exited, client))

    def kill(self, pid, client):
        """Kills the runner of a client that has disconnected."""
        self.selector.unregister(client)
        # The runner may have exited by itself, or may not have become a group yet.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)

    def reap(self, pid, exited, client):
        self.selector.unregister(exited)
        os.close(exited)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(KeyError):
            self.selector.unregister(client)
        with contextlib.suppress(OSError):
            client.sendall(f"exit code {os.waitstatus_to_exitcode(status)}\n".encode())
        client.close()
        self.clients.discard(client)


def run(arguments, directory, output):
    """Becomes a runner. Never returns."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    os.nice(NICENESS)
    os.chdir(directory)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(file, descriptor)
    sys.argv = ["runner", *arguments]
    from mailman.bin.runner import main

    sys.exit(main())


if __name__ == "__main__":
    preload()
    ForkServer(sys.argv[1]).serve()
