"""Runs a program in a fork of the fork server, see `fork_server.py`.

usage: fork_client.py SOCKET [ARGUMENT]...
"""

import contextlib
import json
import os
import socket
import sys


def open_descriptors():
    for name in os.listdir("/proc/self/fd"):
        # That of the directory itself is closed by now.
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            yield int(name)


descriptors = sorted(open_descriptors())
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    request = {
        "arguments": sys.argv[2:],
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "descriptors": descriptors,
    }
    data = f"{json.dumps(request)}\n".encode()
    sent = socket.send_fds(server, [data], descriptors)
    server.sendall(data[sent:])
    responses = server.makefile()
    responses.readline()
    status = responses.readline()
sys.exit(int(status.removeprefix("exit code ") or 1))
