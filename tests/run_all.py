"""Every check and test, in order of how soon each can fail, with the time that each part took."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST = [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "--durations=15"]

# A file stays in one process, for its fixtures; the longest files come first, as tests/conftest.py orders them.
BOTH_CORES = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]

# Two processes on two cores: further threads of each would wait for each other in loops that keep the cores busy.
ONE_THREAD_EACH = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

# Commands of one part run side by side: mypy alone would leave a core idle for most of a minute.
PARTS = {
    "lint": [[str(BIN / "ruff"), "check", "."]],
    "format": [[str(BIN / "ruff"), "format", "--check", "."]],
    "layers": [[str(BIN / "lint-imports")]],
    "browser": [[str(ROOT / "tests" / "install_browser.sh")]],
    "types, unit": [[str(BIN / "mypy")], [*PYTEST, *BOTH_CORES, "tests/unit"]],
    "integration, end to end": [[*PYTEST, *BOTH_CORES, "tests/integration", "tests/e2e"]],
}


def run(commands: list[list[str]]) -> int:
    """Run commands side by side; only the last one prints at once. The exit code is that of the first that failed."""
    environment = {**os.environ, **ONE_THREAD_EACH, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=None if command is commands[-1] else subprocess.PIPE
        )
        for command in commands
    ]
    started[-1].wait()
    for process in started[:-1]:
        print(process.communicate()[0], end="", flush=True)
    return next((process.returncode for process in started if process.returncode), 0)


def main() -> int:
    """Run the parts until one fails; the exit code is that of the failed part."""
    times: list[tuple[str, float]] = []
    code = 0
    for name, commands in PARTS.items():
        print(f"── {name}", flush=True)
        started = time.monotonic()
        code = run(commands)
        times.append((name, time.monotonic() - started))
        if code:
            break
    width = shutil.get_terminal_size((80, 20)).columns
    print("─" * min(width, 40))
    for name, seconds in times:
        print(f"{name:<25}{seconds:8.1f} s")
    print(
        f"{'altogether':<25}{sum(seconds for _, seconds in times):8.1f} s",
        "" if not code else f"({times[-1][0]} failed)",
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
