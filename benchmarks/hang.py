"""Show what happens when a rank is stopped for good (SIGSTOP): the report, the time to the end.

    python benchmarks/hang.py --data PACKED_FOLDER [--rank 1] [--timeout_s 20]

It starts `accelerate launch launcher/pretrain.py` with two CPU ranks, waits until both train, stops
one of them, and prints the summary that the other leaves. Needs two cores and no GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from colorgan.runs.hang_reports import SUMMARY, RankStatus, read_status
from colorgan.runs.log import read_log

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "--network.width 4 --discriminator.width 4 --batch.global_batch_size 4 "
    "--output.log_every_images 4"
)


def launch(data: Path, run: Path, timeout_s: int) -> subprocess.Popen[str]:
    """Start two CPU ranks that train a tiny network for longer than this script runs."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launcher/configs/accelerate/ddp_cpu.yaml"),
        str(ROOT / "launcher/pretrain.py"),
        "--data.train",
        str(data.resolve()),
        "--network.image_size",
        "64",
        *TINY.split(),
        "--images",
        "10000000",
        "--run",
        str(run),
        "--launch.timeout_s",
        str(timeout_s),
        "--launch.torch_threads",
        "1",
    ]
    # On machines with GPUs too: two ranks of a tiny network need none.
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=run.parent,
    )


def wait_for_rank(run: Path, rank: int) -> RankStatus:
    """Return the rank's beat, once the run has logged a few steps."""
    for _ in range(1200):
        time.sleep(0.1)
        try:
            steps = len(read_log(run))
        except OSError:
            continue
        beats = [read_status(path) for path in run.glob(f"hangs/*/.beat-{rank:05d}")]
        # Past its start, where kernels are chosen and memory is taken.
        if steps > 5 and beats and beats[0] is not None:
            return beats[0]
    raise SystemExit("the run did not start in two minutes")


def main() -> None:
    """Stop a rank; print what is left and how long it took."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--rank", type=int, default=1)
    arguments.add_argument("--timeout_s", type=int, default=20)
    given = arguments.parse_args()

    # A fresh folder: a run that is there would be resumed.
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        launcher = launch(given.data, run, given.timeout_s)
        try:
            peer = wait_for_rank(run, given.rank)
            # SIGSTOP, not SIGKILL: a process that is there and never answers is the harder case.
            os.kill(peer.process, signal.SIGSTOP)
            stopped_at = time.monotonic()
            output, _ = launcher.communicate(timeout=given.timeout_s + 60)
        finally:
            # Also after an error here: ranks must not outlive the benchmark.
            launcher.kill()

        seconds = time.monotonic() - stopped_at
        print(
            f"rank {given.rank} stopped; launcher ended {seconds:.1f} s later with status "
            f"{launcher.returncode}"
        )
        print(f"(launch.timeout_s {given.timeout_s})\n")
        for path in sorted(run.glob("hangs/*/*")):
            print(f"{path.relative_to(run)}  {path.stat().st_size} bytes")
        print("\n" + "".join(path.read_text() for path in run.glob(f"hangs/*/{SUMMARY}")))
        print(
            "".join(
                line + "\n"
                for line in output.splitlines()
                if "exitcode" in line or "The run hung" in line
            )
        )


if __name__ == "__main__":
    main()
