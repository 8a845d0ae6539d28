"""A Python for tests that starts in a fraction of a second: each of its processes is a fork of one that has imported
torch and transformers already.

    python -m tests.warm_python FOLDER    # started by the fixture ``warm_python``; FOLDER/bin/python is then one

``FOLDER/bin/python`` is a small client: it hands its arguments, folder, environment and standard streams to the
server, passes signals on and ends as the process did, by a signal where that did. Whoever kills the client kills the
process. The project's own modules are imported anew in every process. What needs more than ``python [-u] -m MODULE``
and ``python [-u] FILE`` goes to the real Python.
"""

import array
import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys

python, arguments = {python!r}, sys.argv[1:]
target = arguments[1:] if arguments[:1] == ["-u"] else arguments
if not target or target[0].startswith("-") and target[0] != "-m":
    os.execv(python, [python, *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
request = {{"argv": target, "cwd": os.getcwd(), "env": dict(os.environ), "executable": sys.argv[0]}}
request = json.dumps(request).encode() + b"\\n"
streams = array.array("i", [0, 1, 2]).tobytes()
sent = server.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(request[sent:])
answers = server.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
status = int(answers.readline())
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


def import_everything() -> None:
    """Import what the commands import, and forget the project's own modules of it."""
    import matplotlib.backends.backend_agg  # noqa: F401 - drawn with at the end of a training
    import torch
    import torch.distributed.run  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers.integrations import tensor_parallel  # noqa: F401 - with the first model

    import internvl.commands.evaluate_caption  # noqa: F401
    import internvl.commands.merge_lora  # noqa: F401
    import internvl.train.internvl_chat_finetune  # noqa: F401

    torch.set_num_threads(1)
    for name in list(sys.modules):
        if name.partition(".")[0] in {"internvl"}:
            del sys.modules[name]


def run(request: dict, streams: list[int]) -> None:
    """Be the process that was asked for: never returns."""
    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.stdin, sys.stdout, sys.stderr = (open(n, m, closefd=False) for n, m in ((0, "r"), (1, "w"), (2, "w")))
        sys.stdout.reconfigure(line_buffering=True)
        sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
        sys.executable = request["executable"]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        own = [path for path in sys.path if "site-packages" in path or path.startswith(sys.base_prefix)]
        sys.path[:] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path] + own
        if request["argv"][0] == "-m":
            sys.argv = request["argv"][1:]
            sys.path.insert(0, request["cwd"])
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = request["argv"]
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as err:
        status = err.code if isinstance(err.code, int) else int(err.code is not None)
        if isinstance(err.code, str):
            print(err.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(status & 0xFF)


class Server:
    """Forks a process for each client, tells it the process's id and status, and kills those whose client is gone."""

    def __init__(self, listener: socket.socket):
        self.listener = listener
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.selector.register(sys.stdin, selectors.EVENT_READ, self.stop)

    def serve(self) -> None:
        self.running = True
        while self.running:
            for key, _ in self.selector.select():
                if key.fileobj in self.selector.get_map():  # or an event before it has ended this one
                    key.data()

    def stop(self) -> None:
        self.running = False

    def accept(self) -> None:
        client, _ = self.listener.accept()
        message, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(12))
        streams = array.array("i")
        for _, _, data in ancillary:
            streams.frombytes(data)
        while message and not message.endswith(b"\n"):
            message += client.recv(1 << 20)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            self.selector.close()
            self.listener.close()
            client.close()
            run(json.loads(message), streams.tolist())
        for stream in streams:
            os.close(stream)
        client.sendall(f"{pid}\n".encode())
        ended = os.pidfd_open(pid)
        self.selector.register(ended, selectors.EVENT_READ, lambda: self.report(client, pid, ended))
        self.selector.register(client, selectors.EVENT_READ, lambda: self.kill(client, pid))

    def report(self, client: socket.socket, pid: int, ended: int) -> None:
        _, status = os.waitpid(pid, 0)
        self.selector.unregister(ended)
        os.close(ended)
        if client in self.selector.get_map():
            self.selector.unregister(client)
        with contextlib.suppress(OSError):  # it was killed itself
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        client.close()

    def kill(self, client: socket.socket, pid: int) -> None:
        """The client is gone: so must be its process."""
        self.selector.unregister(client)
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    folder = Path(sys.argv[1])
    import_everything()
    address = str(folder / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    (folder / "bin").mkdir()
    program = folder / "bin" / "python"
    program.write_text(CLIENT.format(python=sys.executable, socket=address))
    program.chmod(0o755)
    print("ready", flush=True)
    Server(listener).serve()


if __name__ == "__main__":
    main()
