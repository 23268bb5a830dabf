"""The local SLURM, packed pictures and the same run without SLURM, once for all tests here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from torch import Tensor

from colorgan.checkpoints.checkpoint import open_checkpoint
from helpers.local_slurm import LocalSlurm, why_not

ROOT = Path(__file__).resolve().parents[2]
SITE = """\
. '{root}/slurm/site.env'
SITE_NODES=${{NODES:-1}} SITE_GPUS_PER_NODE=${{GPUS:-0}} SITE_DEVICE=cpu
SITE_CPUS_PER_NODE=2 SITE_CPU_CPUS=2
SITE_TIME=${{TIME:-30}} SITE_CPU_TIME=30 SITE_VENV='{venv}'
# Both nodes share one loopback device: srun started on node2 is answered at node1's address.
SITE_EXTRA=(--nodelist=node1)
"""
RECIPE = """\
images: 480
network: {image_size: 32, width: 4}
discriminator: {width: 4, num_strided_blocks: 2}
loss: {gan: least_squares, l1_weight: 100}
batch: {global_batch_size: 8, micro_batch_size: 4}
launch: {torch_threads: 1}
data: {decode_threads: 1}
output: {log_every_images: 8, validate_every_images: 0, save_every_images: 0, num_pictures: 0}
"""
PACK = """\
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from datasets.sample.corpus import open_sample
from datasets.sample.writing import SampleSpec
from shards.packing.pack import pack
spec = SampleSpec(num_train=64, num_val=16, num_voc_train=32, num_voc_val=16, size=32)
open_sample(Path("raw set"), "train", spec)
for split in ("train", "val"):
    pack(open_sample(Path("raw set"), split), Path(f"packed {split}"), root=Path("raw set"),
         image_policy="squash:32",
         samples_per_shard=16, workers=0)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the cluster; skip it with the reason where SLURM cannot run."""
    reason = why_not()

    for item in items:
        # By its folder, too: other tests may have a fixture of that name.
        if Path(str(item.fspath)).parent == ROOT / "tests" / "slurm" and "slurm" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker("slurm")
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"no local SLURM: {reason}"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with blanks in its path: a recipe, a drawn corpus, packed sets."""
    # A blank in a path is where scripts of shells break.
    folder = tmp_path_factory.mktemp("a place with blanks")
    (folder / "site.env").write_text(SITE.format(root=ROOT, venv=Path(sys.executable).parents[1]))
    (folder / "my recipe.yaml").write_text(RECIPE)
    subprocess.run([sys.executable, "-c", PACK, str(ROOT)], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    """Two nodes."""
    with LocalSlurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def words() -> list[str]:
    """Return the arguments of a small pretraining run, except its folder."""
    return [
        "--config",
        "my recipe.yaml",
        "--data.train",
        "packed train",
        "--data.val",
        "packed val",
    ]


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, str]]:
    """Return a function: digests of all tensors that a run's last checkpoint holds."""

    def digest(tensor: Tensor) -> str:
        return f"{tensor.dtype} {sha256(tensor.numpy().tobytes()).hexdigest()}"

    def read(run: Path) -> dict[str, str]:
        found = open_checkpoint(sorted((run / "checkpoints").glob("images-*"))[-1])
        return {
            f"{found.path.name}/{role}/{name}": digest(tensor)
            for role in found.roles()
            for name, tensor in found.tensors(role).items()
        }

    return read


@pytest.fixture(scope="session")
def plain(
    place: Path, words: list[str], weights: Callable[[Path], dict[str, str]]
) -> dict[str, str]:
    """Return the final weights of the same run by two processes without SLURM."""
    launch = [
        str(Path(sys.executable).parent / "accelerate"),
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, str(ROOT / "launcher/pretrain.py"), *words, "--run", "plain"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    return weights(place / "plain")
