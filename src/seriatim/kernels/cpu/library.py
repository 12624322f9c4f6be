"""Machine code of the kernels: from the cache on disk, or from the compiler, once for this processor and these sources.

The cache is the folder named by SERIATIM_CACHE, else `seriatim` in the user's cache folder. The name of an entry holds
a digest of its sources, the versions of numba and llvmlite and the processor, so it is never stale. Where the folder
cannot be written the code is compiled again in every process, after one warning.
"""

import hashlib
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Compiled", "KernelError", "cache_folder", "compile_now", "is_cached", "load", "sources"]

SOURCE = Path(__file__).parent / "source"
_lock = threading.RLock()
_loaded: dict[str, dict[str, "Compiled"]] = {}
_engine: list[Any] = []  # the linker, once it exists


class KernelError(RuntimeError):
    """A kernel could not be compiled or loaded; the portable path does its work instead."""


class Compiled(NamedTuple):
    """A kernel's machine code: where it lies and what it is called with."""

    address: int
    arguments: tuple[str, ...]  # of each: the letter of its dtype, then its dimensions if it is an array


def sources() -> list[str]:
    """The names of the files of kernels, one an op."""
    return sorted(path.stem for path in SOURCE.glob("*.py") if re.search(r"^@kernel$", path.read_text(), re.M))


def load(name: str) -> dict[str, Compiled]:
    """The kernels of source/<name>.py, by their names; compiled if no earlier process has.

    Raises:
        KernelError: numba is missing, or cannot compile here; the message says why.
    """
    with _lock:
        if name not in _loaded:
            _loaded[name] = _link(name, _cached(name) or _compile(name))
        return _loaded[name]


def cache_folder() -> Path:
    """Where machine code is kept."""
    if os.environ.get("SERIATIM_CACHE"):
        return Path(os.environ["SERIATIM_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "seriatim" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "seriatim"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seriatim"


@cache
def _digest(name: str) -> str:
    """Of everything the machine code of source/<name>.py depends on."""
    import llvmlite.binding as llvm

    found = hashlib.sha256()
    for path in [*_read_by(name), Path(__file__).with_name("compiler.py")]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    found.update(f"{version('numba')} {version('llvmlite')} {sys.version_info[:2]} {platform.machine()}".encode())
    found.update(f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode())
    return found.hexdigest()[:16]


def _read_by(name: str) -> list[Path]:
    """The files of source/ that source/<name>.py consists of: itself and what it imports, all the way."""
    found: set[str] = set()
    todo = {name}
    while todo:
        found |= todo
        texts = [(SOURCE / f"{stem}.py").read_text() for stem in todo]
        # "...source.x import y" and "...source import x, y" alike: every word of the line that names a file is one
        lines = [line for text in texts for line in re.findall(r"kernels\.cpu\.source\b(.*)", text)]
        todo = {stem for line in lines for stem in re.findall(r"\w+", line) if (SOURCE / f"{stem}.py").exists()} - found
    return [SOURCE / f"{stem}.py" for stem in sorted(found)]


def _place(name: str) -> Path:
    return cache_folder() / "kernels" / f"{name}-{_digest(name)}.bin"


def is_cached(name: str) -> bool:
    """Whether the kernels of source/<name>.py need not be compiled."""
    return _cached(name) is not None


def _cached(name: str) -> bytes | None:
    """What an earlier process compiled: 32 bytes of checksum, then what the compiler wrote."""
    _require()
    try:
        found = _place(name).read_bytes()
    except OSError:
        return None
    return found[32:] if hashlib.sha256(found[32:]).digest() == found[:32] else None


def _require() -> None:
    """Raises unless numba and llvmlite are installed."""
    for package in ("numba", "llvmlite"):
        try:
            version(package)
        except PackageNotFoundError:
            raise KernelError(f"{package} is not installed (pip install numba)") from None
        if find_spec(package) is None:
            raise KernelError(f"{package} cannot be imported")


def compile_now(name: str) -> tuple[bytes, float]:
    """Runs the compiler in a process of its own and keeps the result in the cache: the code, and the seconds it took.

    Raises:
        KernelError: it could not; the message says why.
    """
    _require()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="seriatim-") as folder:
        output = Path(folder) / f"{name}.bin"
        command = [sys.executable, "-P", "-m", "seriatim.kernels.cpu.compiler", name, str(output)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        except (OSError, TypeError) as error:  # no interpreter of our own, or it may not be started
            raise KernelError(f"the compiler's process did not start: {error}") from None
        if done.returncode or not output.exists():
            raise KernelError(f"compiling {name} failed: {_reason(done.stderr) or f'status {done.returncode}'}")
        found = output.read_bytes()
    _keep(name, found)
    return found, time.perf_counter() - begin


def _reason(trace: str) -> str:
    """The line of a traceback that says what went wrong."""
    lines = trace.strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [""])[-1]


def _compile(name: str) -> bytes:
    """Compiles and says so: somebody is waiting."""
    print(f"seriatim: compiling {name} for this processor, once ...", end=" ", file=sys.stderr, flush=True)
    try:
        found, seconds = compile_now(name)
    except KernelError:
        print("failed", file=sys.stderr, flush=True)
        raise
    print(f"{seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def _keep(name: str, found: bytes) -> None:
    """Writes an entry of the cache, whole or not at all."""
    place = _place(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(hashlib.sha256(found).digest() + found)
        os.replace(file.name, place)
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {place.parent} ({error.strerror}); every process compiles them again. "
            "Set SERIATIM_CACHE to a folder that can be written.",
            stacklevel=2,
        )


def _link(name: str, found: bytes) -> dict[str, Compiled]:
    """Puts machine code into memory."""
    import llvmlite.binding as llvm

    (length,) = struct.unpack_from("<q", found)
    table = json.loads(found[8 : 8 + length])
    try:
        if not _engine:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            _engine.append(llvm.create_lljit_compiler())
        builder = llvm.JITLibraryBuilder().add_object_img(found[8 + length :]).add_current_process()
        for entry in table.values():
            builder.export_symbol(entry["symbol"])
        tracker = builder.link(_engine[0], f"seriatim_{name}")
    except RuntimeError as error:
        raise KernelError(f"the kernels of {name} could not be loaded: {error}") from None
    _engine.append(tracker)  # the code lives as long as its tracker
    return {key: Compiled(tracker[entry["symbol"]], tuple(entry["arguments"])) for key, entry in table.items()}
