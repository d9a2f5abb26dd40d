"""Stand-ins for the CANN libraries that torch_npu is linked against, made from the torch_npu that is installed.

torch_npu's shared objects name libraries of CANN (DT_NEEDED) and want functions of them when they are loaded. Both
lists are read from the wheel; nothing of CANN is known here. The libraries written are empty but for libascendcl.so: it
has the pretend device (runtime.c) and, for every other wanted function, one that fails: reaching CANN raises.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

HOME = "libascendcl.so"
RUNTIME = Path(__file__).with_name("runtime.c")
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
# Looked up by name or called for their effect alone, of which there is none here.
NOTHING = (
    *("aclFinalize", "aclrtResetDevice", "aclrtDeviceEnablePeerAccess", "aclrtSetDeviceSatMode", "aclAppLog"),
    *("aclrtSetOpExecuteTimeOut", "aclrtSetOpWaitTimeout", "aclrtCtxSetSysParamOpt", "aclrtPeekAtLastError"),
    *("aclrtGetLastError", "aclSetCompileopt", "aclrtReleaseMemAddress", "aclrtSetStreamFailureMode"),
    *("aclrtSetStreamOverflowSwitch", "aclrtResetEvent", "aclrtStreamWaitEvent"),
    *("aclmdlRICaptureThreadExchangeMode", "aclmdlRIDestroy"),
)
# Clean-up, profiling, and makers whose null result the caller handles.
HARMLESS = re.compile(r"Destroy|Free|Finalize|^Msprof|^aclCreate(TensorDesc|DataBuffer)$|^aclopCreateAttr$")
_PRELUDE = "int soft_npu_absent(const char *name, int result);\n"
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1")


def stub_folder() -> Path:
    """The folder of libraries for the installed torch_npu, built (1 s, with gcc and binutils) when it is not there."""
    digest = hashlib.sha256(RUNTIME.read_bytes() + Path(__file__).read_bytes())
    for client in _clients():
        digest.update(f"{client} {client.stat().st_size} {client.stat().st_mtime_ns}".encode())
    folder = Path(tempfile.gettempdir()) / f"soft_npu_{os.getuid()}_{digest.hexdigest()[:16]}"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / HOME).exists():
            build(folder)
    return folder


def build(folder: Path) -> None:
    """Write the missing libraries to `folder`; raises FileNotFoundError without torch_npu."""
    clients, providers = _clients(), sorted((SITE_PACKAGES / "torch" / "lib").glob("*.so*"))
    bundled = {path.name for path in (*clients, *providers)}
    missing = sorted({name for path in clients for name in _needed(path)} - bundled)
    headers = SITE_PACKAGES / "torch_npu" / "include" / "third_party" / "acl" / "inc"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        runtime, source, home = Path(work, "runtime.o"), Path(work, "plain.c"), Path(work, HOME)
        _gcc("-c", "-O1", f"-I{headers}", "-o", str(runtime), str(RUNTIME))
        source.write_text(_PRELUDE + "\n".join(_plain(name) for name in sorted(_wanted(clients, providers, runtime))))
        _gcc("-shared", "-w", "-pthread", f"-Wl,-soname,{HOME}", "-o", str(home), str(runtime), str(source))
        for name in missing:
            if name != HOME and not _loader_finds(name):
                # empty: a function that is looked up in it is found in the one that it depends on
                depends = ("-Wl,--no-as-needed", str(home), "-Wl,-rpath,$ORIGIN")
                target = ("-o", str(folder / name), "-x", "c", "/dev/null", "-x", "none")
                _gcc("-shared", f"-Wl,-soname,{name}", *target, *depends)
        (folder / f"{HOME}.new").write_bytes(home.read_bytes())
    (folder / f"{HOME}.new").rename(folder / HOME)  # last, for it says that the folder is whole


def _clients() -> list[Path]:
    folder = SITE_PACKAGES / "torch_npu"
    if not folder.is_dir():
        raise FileNotFoundError(f"torch_npu is not installed in {SITE_PACKAGES}")
    return [*sorted(folder.glob("lib/*.so")), *sorted(folder.glob("_C*.so"))]


def _wanted(clients: list[Path], providers: list[Path], runtime: Path) -> set[str]:
    """Functions that a client needs and nobody has, and those of NOTHING."""
    there, wanted = _symbols(runtime, "-g")[0], set(NOTHING)
    for path in clients:
        defined, undefined = _symbols(path, "-D")
        there |= defined
        wanted |= undefined
    for path in (*providers, *(Path(_output("gcc", f"-print-file-name={name}").strip()) for name in SYSTEM)):
        there |= _symbols(path, "-D")[0] if path.exists() else set()
    wanted = {name for name in wanted - there if not re.match(r"_?Py[A-Z_]", name)}
    data = sorted(name for name in wanted if re.match(r"_ZT[VIS]", name))
    assert not data, f"this torch_npu wants data of CANN, which a function cannot stand in for: {data[:5]}"
    return wanted


def _symbols(path: Path, which: str) -> tuple[set[str], set[str]]:
    """(defined, undefined) names; versioned imports are the C library's, weak ones may stay open."""
    defined, undefined = set(), set()
    for line in _output("nm", which, "--format=posix", str(path)).splitlines():
        name, kind = line.split()[:2]
        if kind == "U" and "@" not in name:
            undefined.add(name)
        elif kind not in "Uwv":
            defined.add(name.split("@")[0])
    return defined, undefined


def _needed(path: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", _output("readelf", "-dW", str(path)))


def _loader_finds(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=os.RTLD_LAZY)
    except OSError as error:
        return name not in str(error)
    return True


def _plain(name: str) -> str:
    result = 0 if name in NOTHING or HARMLESS.search(name) else 507899
    return f'int {name}(void) {{ return soft_npu_absent("{name}", {result}); }}'


def _gcc(*arguments: str) -> None:
    subprocess.run([os.environ.get("CC", "gcc"), "-fPIC", *arguments], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
