"""A bundle behind the Serve graph, as `glyphrun serve` starts it on one machine, until the process is interrupted.

python benchmarks/graph_service.py BUNDLE PORT
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from signal import pause

from glyphrun_serve.app import ServeSettings, run

if __name__ == "__main__":
    with suppress(KeyboardInterrupt), run(ServeSettings(bundle=Path(sys.argv[1])), port=int(sys.argv[2])):
        pause()
