"""Running a command in several processes, and showing what was refused in one line."""

import contextlib
import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlzoo import machine
from rlzoo.algorithm import Refused

GRACE_SECONDS = 10.0  # for process 0 to say what it was refused, once another worker has failed
OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT}
OUTSIDE |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENOMEM}
"""errors of the file system that a traceback does not explain"""
FULL = "No space left on device"
"""said by libraries that wrap the error of a full disk in their own"""


# ---- several processes ---------------------------------------------------------------------------


def workers(asked: int, members: int) -> int:
    """How many processes to start: at most one for each member and core. Says so where it is
    fewer than asked for."""
    count = min(asked, members, machine.cores())
    if count < asked:
        has = f"{members} member{'s' * (members != 1)} and {machine.cores()} cores"
        print(f"--processes {asked}: {count} for {has}", flush=True)
    return count


def spread(command: list[str], count: int) -> int:
    """Run `python COMMAND` in `count` processes, which share the members; the exit code of process
    0, which records."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count - 1)]

        def start(index: int, **streams: Any) -> subprocess.Popen:
            env = os.environ | place | {"JAX_PROCESS_ID": str(index)}
            return subprocess.Popen([sys.executable, *command], env=env, **streams)

        started = [start(0), *(start(i, stdout=log, stderr=log) for i, log in enumerate(logs, 1))]
        # the terminal sends SIGINT to every process: they save and stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: _send(started, number))
        return _wait(started, logs)


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
    if failed:  # process 0 says why where all refuse alike; otherwise it would wait for ever
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


# ---- errors --------------------------------------------------------------------------------------


class plain_errors:
    """Shows in one line what was refused, and what the file system did not do; exits with 2 then.

    Ends in silence where nobody reads the output any more, as in `rlzoo list | head`.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        unread = isinstance(error, BrokenPipeError)
        try:
            if not unread:
                sys.stdout.flush()
        except BrokenPipeError:
            unread = True
        if unread:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for Python's own flush at the end
        text = "" if unread else _in_one_line(error)
        if text:
            print(f"error: {text}", file=sys.stderr)
        ends = isinstance(error, SystemExit)
        if error and not ends and "JAX_COORDINATOR_ADDRESS" in os.environ:
            if not text and not unread:
                traceback.print_exception(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2 if text else 1)  # an ordinary exit would wait for the other processes
        if text:
            sys.exit(2)
        if unread:
            sys.exit(error.code if ends else 1)


def _in_one_line(error: BaseException | None) -> str:
    """What to say of an error that needs no traceback; empty for others."""
    if isinstance(error, Refused | MemoryError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OUTSIDE and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return FULL if isinstance(error, Exception) and FULL in str(error) else ""


@contextlib.contextmanager
def words_of_flags() -> Iterator[None]:
    """Notes and refusals about data sets write the arguments of Python as flags."""

    class Stderr(io.TextIOBase):
        def write(self, text: str) -> int:
            return stream.write(_with_flags(text))

    stream = sys.stderr
    with contextlib.redirect_stderr(Stderr()):
        try:
            yield
        except Refused as error:
            raise Refused(_with_flags(str(error))) from None


def _with_flags(text: str) -> str:
    for python, flag in (
        (r"(?:finish|bounds|clip|names)=[^=]*? \(rlzoo data convert (--[^)]+)\)", r"\1"),
        (r"finish='truncate'", "--finish truncate"),
        (r"clip=True", "--clip"),
    ):
        text = re.sub(python, flag, text)
    return text


def once_when_full() -> None:
    """Keeps orbax's threads from logging the error of a full disk, which is raised, too."""
    import logging

    import orbax.checkpoint  # noqa: F401  (its logger is made on import)

    logging.getLogger("absl").addFilter(lambda record: FULL not in record.getMessage())


def check_target(path: Path) -> Path:
    """`path`, in a folder that is made for it: a file that can be written. To be asked before the
    work is done, not after it. Raises `Refused`."""
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror}") from None
    return path
