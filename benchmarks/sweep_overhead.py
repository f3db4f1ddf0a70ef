"""What a sweep's scheduling costs: its wall time against the compute of its trials divided by the slots they ran in.

    python benchmarks/sweep_overhead.py runs/demo

The floor is 1: every slot busy with training and evaluation from the first second to the last. Processes that start,
imports, and slots that are empty while the last trial ends are what is above it. Aim: at most 1.35.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Read a finished run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--slots", type=int, help="trials at a time; the machine's cores unless told")
    arguments = parser.parse_args()
    results = json.loads((arguments.run_dir / "results.json").read_text())
    slots = arguments.slots or results["run"]["machine"]["cores"]
    compute = sum(trial["seconds"] for trial in results["trials"])
    wall = results["run"]["seconds"]
    print(f"{len(results['trials'])} trials, {slots} slots: {compute:.1f} s of compute, {wall:.1f} s of wall time")
    print(f"wall time / (compute / slots) = {wall / (compute / slots):.2f}")


if __name__ == "__main__":
    main()
