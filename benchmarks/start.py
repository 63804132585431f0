"""CPU seconds of a small search, its imports searched for garbage or not: `python
benchmarks/start.py --rounds 7`.

Both are processes of their own, started by turns; seconds are user + system; ratios are taken round
by round.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

PLAIN = "import contextlib\nfrom lth_scale.config import startup\nstartup.first_imports = contextlib.nullcontext\n"
COMMAND = "from lth_scale import imp\nimp.main()"
SMALL = (
    "--task sst2 --preset demo --max_steps 2 --max_train_samples 64 --max_eval_samples 16 --target_sparsity 0.1 "
    "--control none --report_to none --output_dir"
)


def seconds(code: str) -> float:
    """CPU seconds of one search."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-c", code, *SMALL.split(), home + "/out"]
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print each round, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds, ratios = parser.parse_args().rounds, []
    for _ in range(rounds):
        plain, lasting = seconds(PLAIN + COMMAND), seconds(COMMAND)
        ratios.append(lasting / plain)
        print(
            f"searched {plain:5.2f} s   not searched {lasting:5.2f} s   ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(
        f"median {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}], n = {rounds}"
    )


if __name__ == "__main__":
    main()
