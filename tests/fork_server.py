"""Runs a Python program in forks of a process that has already imported it.

usage: fork_server.py PROGRAM SOCKET

PROGRAM is runner (Mailman's), aws (the AWS CLI) or process_template. Most of the time
that they take is spent on their imports. A fork gets them for free, and is otherwise
the same process: it has its own memory, and it runs the same `main` as the command.

A client connects to the Unix socket and sends one line of JSON with the program's
`arguments`, its working `directory`, and either the file for its `output`, or its
`environment` and the numbers of its open `descriptors`, which it sends with the line (see
`fork_client.py`). The response is one line with its process id. When the program exits, a
second line tells its exit status. The program and its children are killed when the client
disconnects, and when this process ends, so a test that is killed leaves nothing behind.

Runners have a low priority. They take most of the CPU time of all tests, and no test
depends on their speed, while others run into timeouts of a fraction of a second.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys

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
# More than any program has, and larger than the number of each.
MAX_DESCRIPTORS = 64


def preload_runner():
    import mailman
    from sqlalchemy.orm import configure_mappers

    modules = pkgutil.walk_packages(mailman.__path__, "mailman.", onerror=lambda name: None)
    names = [module.name for module in modules if ".tests" not in module.name and ".docs" not in module.name]
    for name in [*ALSO_PRELOADED, *(name for name in names if not f"{name}.".startswith(NOT_PRELOADED))]:
        # A module that can't be imported yet is imported by the runner if it needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    configure_mappers()


def run_runner():
    os.nice(NICENESS)
    # Requests leave cycles behind, but a test doesn't live long enough for them to matter.
    gc.disable()
    from mailman.bin.runner import main

    return main()


def preload_aws():
    import awscli.clidriver

    # It also imports its plugins.
    awscli.clidriver.create_clidriver()


def run_aws():
    import awscli
    from awscli.clidriver import main

    # Its import sets a variable, and the environment is now the client's.
    importlib.reload(awscli)
    return main()


def preload_process_template():
    import process_template  # noqa: F401


def run_process_template():
    from process_template import main

    return main()


# What each program imports, and how it runs.
PROGRAMS = {
    "runner": (preload_runner, run_runner),
    "aws": (preload_aws, run_aws),
    "process_template": (preload_process_template, run_process_template),
}


class ForkServer:
    """Serves clients, each of which has at most one process."""

    def __init__(self, program, path):
        self.program = program
        preload, self.main = PROGRAMS[program]
        preload()
        # A collection in a fork would otherwise write to, and so copy, the memory of all modules.
        gc.collect()
        gc.freeze()
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
        data, files, _, _ = socket.recv_fds(client, 65_536, MAX_DESCRIPTORS)
        if data and not data.endswith(b"\n"):
            data += client.makefile("rb").readline()
        if not data.endswith(b"\n"):
            # The client has disconnected.
            client.close()
            for file in files:
                os.close(file)
            return
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            self.selector.close()
            self.listener.close()
            for other in [client, *self.clients]:
                other.close()
            prepare(files=files, **request)
            sys.argv = [self.program, *request["arguments"]]
            sys.exit(self.main())
        for file in files:
            os.close(file)
        self.clients.add(client)
        exited = os.pidfd_open(pid)
        with contextlib.suppress(OSError):
            client.sendall(f"{pid}\n".encode())
        self.selector.register(client, selectors.EVENT_READ, lambda: self.kill(pid, client))
        self.selector.register(exited, selectors.EVENT_READ, lambda: self.reap(pid, exited, client))

    def kill(self, pid, client):
        """Kills the process of a client that has disconnected."""
        if client not in self.clients:
            # The process has exited in the same moment.
            return
        self.selector.unregister(client)
        # The process may have exited by itself, or may not have become a group yet.
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


def prepare(files, arguments, directory, output=None, environment=None, descriptors=(0, 1, 2)):
    """Gives a forked process its directory, its environment and its open files."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    os.chdir(directory)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        files = [os.open(os.devnull, os.O_RDONLY), file, file]
    # Not on a number that another one needs.
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, MAX_DESCRIPTORS) for file in files]
    for file in set(files):
        os.close(file)
    for file, descriptor in zip(moved, descriptors, strict=True):
        os.dup2(file, descriptor)
        os.close(file)


if __name__ == "__main__":
    ForkServer(*sys.argv[1:]).serve()
