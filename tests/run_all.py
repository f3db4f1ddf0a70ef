"""Every check and test, in order of how soon each can fail, with the time that each part took."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST = [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider"]

# A file stays in one process, for its fixtures; the longest files come first, as tests/conftest.py orders them.
BOTH_CORES = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]

PARTS = {
    "lint": [str(BIN / "ruff"), "check", "."],
    "format": [str(BIN / "ruff"), "format", "--check", "."],
    "types": [str(BIN / "mypy")],
    "layers": [str(BIN / "lint-imports")],
    "browser": [str(ROOT / "tests" / "install_browser.sh")],
    "unit": [*PYTEST, *BOTH_CORES, "tests/unit"],
    "integration, end to end": [*PYTEST, *BOTH_CORES, "tests/integration", "tests/e2e"],
}


def main() -> int:
    """Run the parts until one fails; the exit code is that of the failed part."""
    times: list[tuple[str, float]] = []
    code = 0
    for name, command in PARTS.items():
        print(f"── {name}", flush=True)
        started = time.monotonic()
        code = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        ).returncode
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
