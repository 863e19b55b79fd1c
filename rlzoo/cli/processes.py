"""Running a command in several processes, and showing what was refused in one line."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from rlzoo.algorithm import Refused
from rlzoo.cli.flags import Request

GRACE_SECONDS = 10.0  # for process 0 to say what it was refused, once another worker has failed


def spread(request: Request) -> int:
    """Run this command in several processes, which share the members; the exit code of process 0,
    which records."""
    from rlzoo.run.options import run_folder

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    count, module = request.options["processes"], not sys.argv[0].endswith(".py")
    folder = run_folder(Path(sys.argv[2] if module else sys.argv[0]).stem, request.config["env"])
    command = [
        sys.executable,
        *(["-m", "rlzoo"] if module else sys.argv[:1]),
        *sys.argv[1:],
        *([] if request.options["out"] else ["--out", str(folder)]),
    ]
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count - 1)]
        env = os.environ | place
        start = lambda i, **streams: subprocess.Popen(
            command, env=env | {"JAX_PROCESS_ID": str(i)}, **streams
        )
        workers = [start(0), *(start(i, stdout=log, stderr=log) for i, log in enumerate(logs, 1))]
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the terminal sends it to every process: they save and stop
        signal.signal(signal.SIGTERM, lambda number, frame: _send(workers, number))
        return _wait(workers, logs)


def _send(workers: list[subprocess.Popen], number: int) -> None:
    for worker in workers:
        worker.send_signal(number)


def _wait(workers: list[subprocess.Popen], logs: list) -> int:
    """Until process 0 has ended, or another one failed; `logs` are what the others printed."""
    fine = (None, 0, 130)
    while workers[0].poll() is None and all(worker.poll() in fine for worker in workers):
        time.sleep(0.1)
    failed = {
        worker.returncode: log
        for worker, log in zip(workers[1:], logs, strict=True)
        if worker.poll() not in fine
    }
    if (
        failed
    ):  # process 0 says why where all refuse alike; otherwise it would wait for the others for ever
        with contextlib.suppress(subprocess.TimeoutExpired):
            workers[0].wait(GRACE_SECONDS)
    if workers[0].poll() is None:
        workers[0].kill()
        for code, log in failed.items():
            log.seek(0)
            print(
                f"error: a worker process ended with {code}; its last lines:\n{log.read()[-2000:]}",
                file=sys.stderr,
            )
    code = workers[0].wait()
    for worker in workers[1:]:
        if code not in fine:
            worker.kill()
        worker.wait()
    return next((code for code in (code, *failed) if code >= 0), 1)


class plain_errors:
    """Shows what was refused in one line, and exits with 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        refused = isinstance(error, (Refused, MemoryError))
        if refused:
            print(f"error: {error}", file=sys.stderr)
        if error and not isinstance(error, SystemExit) and "JAX_COORDINATOR_ADDRESS" in os.environ:
            if not refused:
                traceback.print_exception(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2 if refused else 1)  # an ordinary exit would wait for the other processes
        if refused:
            sys.exit(2)
