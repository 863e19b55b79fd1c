"""What this machine is and how much it holds."""

import errno
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> Path | None:
    """Where compiled programs are kept: $RLZOO_CACHE, or rlzoo/ in the user's cache folder. None
    where there is no home directory."""
    if given := os.environ.get("RLZOO_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "rlzoo"
    try:
        return Path.home() / ".cache" / "rlzoo"
    except RuntimeError:
        return None


def start_backend() -> None:
    """What has to be set before jax starts. Runs when `rlzoo.env` is imported, since gymnax starts
    jax.

    On a CPU jax gets one thread (unless PJRT_NPROC says otherwise): programs of small networks are
    no slower, and with more threads XLA now and then hangs for ever, all its threads asleep (jax
    0.10.2, 32 members of PPO: one of three runs; none of ten with one thread, see
    scripts/check_hang.py). Use other cores by `--processes`. With fewer threads than devices it
    hangs at once, so there is one for each device that XLA_FLAGS asks for.

    With JAX_COORDINATOR_ADDRESS in the environment (beside JAX_NUM_PROCESSES and JAX_PROCESS_ID)
    this process joins the others of a run.
    """
    import jax
    from jax._src import xla_bridge

    joins = "JAX_COORDINATOR_ADDRESS" in os.environ and not jax.distributed.is_initialized()
    if xla_bridge.backends_are_initialized():
        if joins:
            raise RuntimeError(
                "JAX_COORDINATOR_ADDRESS is set, but jax was started before rlzoo was imported, "
                "so this process cannot join the others; import rlzoo.env first"
            )
        return
    if joins:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    asked = os.environ.get("PJRT_NPROC", "")
    threads = int(asked) if asked.isdigit() else 1
    os.environ["PJRT_NPROC"] = str(
        max(threads, _host_devices(jax.config.values["jax_num_cpu_devices"]))
    )


def _host_devices(configured: int) -> int:
    """How many devices the CPU will be: XLA_FLAGS, or jax's own option where it is set."""
    found = re.findall(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    return max(configured, *map(int, found), 1)


def how_to_install(extra: str) -> str:
    """The command that installs an extra, from the package index and in a clone."""
    return f"pip install 'rlzoo-jax[{extra}]' (in a clone: pip install -e '.[{extra}]')"


def keep_compiled() -> None:
    """Keep compiled programs on disk: the next run with the same shapes starts at once. Where that
    cannot be, a line says why."""
    import jax

    folder = cache_dir()
    try:
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, "there is no home directory")
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, f"{folder} cannot be written")
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(
            f"note: compiled programs are not kept ({why}); RLZOO_CACHE can name another folder",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def wait_for_others(what: str) -> None:
    """Returns when every process of this run has called it with the same `what`; at once where
    there is only one.

    The first sum over processes fails where one of them comes 30 seconds after the other (jax
    0.10.2 on CPUs), and compiling alone can take that much longer on one of them.
    """
    import jax
    from jax._src import distributed

    if jax.process_count() > 1:
        client: Any = distributed.global_state.client
        client.wait_at_barrier(what, timeout_in_ms=3_600_000)


def compiler_options(backend: str) -> dict[str, Any]:
    """Options of XLA that make small networks faster (measured on PPO: 5-10% on a CPU)."""
    if backend != "cpu":
        return {}
    wide = any("avx512f" in line for line in _lines("/proc/cpuinfo") if line.startswith("flags"))
    return {"xla_cpu_copy_insertion_use_region_analysis": True} | (
        {"xla_cpu_prefer_vector_width": 512} if wide else {}
    )


def describe() -> dict[str, Any]:
    """Hardware for the record: platform, devices, cores, memory in bytes."""
    import jax

    names = [
        line.split(":", 1)[1].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    return {
        "platform": platform.platform(),
        "cpu": names[0] if names else platform.processor(),
        "cores": cores(),
        "memory_bytes": _meminfo("MemTotal"),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def available_bytes(device: Any) -> int | None:
    """Free memory that `device` can still give out; None where it cannot be told."""
    if device.platform == "cpu":
        free = _meminfo("MemAvailable")
        limit, now = (
            "".join(_lines(f"/sys/fs/cgroup/memory.{name}")).strip() for name in ("max", "current")
        )
        if limit.isdigit() and now.isdigit():
            free = min(free or int(limit), int(limit) - int(now))
        return free
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def peak_bytes(device: Any) -> int:
    """The most memory used so far: of the device, or of this process on a CPU."""
    if device.platform != "cpu":
        return int((device.memory_stats() or {}).get("peak_bytes_in_use", 0))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if platform.system() == "Darwin" else 1024
    )


def check_fits(needed: int, device: Any, what: str) -> None:
    """Raise MemoryError with advice where `what` needs more than `device` has left."""
    free = available_bytes(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} need{'' if what.startswith('the training') else 's'} {readable(needed)}, but "
            f"{readable(free)} is free on {device.device_kind}. Fewer --seeds or swept values, a "
            "smaller replay or fewer environments would fit; or split the seeds over several runs."
        )


def readable(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is checked out at, with `+changes` where it is modified; None
    outside git."""

    def run(*args: str) -> subprocess.CompletedProcess:
        command = ["git", "-C", str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        commit = run("rev-parse", "HEAD")
    except FileNotFoundError:  # no git on this machine
        return None
    if commit.returncode:
        return None
    changes = run("status", "--porcelain", "-uno").stdout.strip()
    return commit.stdout.strip() + ("+changes" if changes else "")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def _meminfo(field: str) -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
