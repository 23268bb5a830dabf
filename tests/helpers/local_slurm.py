"""A real two-node SLURM on this machine: daemons as children of the test, one folder.

    with LocalSlurm(folder) as slurm:
        job = slurm.submit("slurm/pretrain.sh", "--config", ...)
        slurm.wait(job)

Debian's packages run as root without systemd; each node's daemon has its own process, host name and
mount namespace, so that a node can be killed. Job ids start at 1 in each fresh cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv")
NODES = ("node1", "node2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdSpoolDir={root}/spool/%n
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmdLogFile={root}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.log
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
NodeName=node[1-2] NodeHostname=node[1-2] NodeAddr=127.0.0.[1-2] Port={node_port} CPUs=64 \
RealMemory=1000000 \
Gres=gpu:8 State=UNKNOWN
PartitionName=debug Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Return what is missing to run SLURM here; empty if nothing is."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if subprocess.run(
        ["unshare", "--pid", "--fork", "--uts", "--mount", "true"], capture_output=True
    ).returncode:
        return "unshare is not permitted here"

    return ""


class LocalSlurm:
    """Two nodes, eight pretended GPUs each; SLURM's commands, and waiting for what jobs do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Within a job of a real cluster, its variables would redirect every command.
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))
        }
        self.environment |= {"SLURM_CONF": str(root / "etc/slurm.conf"), "PATH": _path()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalSlurm:
        try:
            self._write_files()
            self._start("munged", "munged", "-F", "--force", *self._munge_options())
            # In this order: each daemon asks the one before it.
            self._until(lambda: (self.root / "run/munge.sock").exists(), 10, "munged")
            self._start("slurmctld", "slurmctld", "-D", "-i", "-f", self.environment["SLURM_CONF"])
            self._until(lambda: "UP" in self.run("scontrol", "ping", check=False), 20, "slurmctld")
            for node in NODES:
                self.start_node(node)
        # Also at Ctrl-C: daemons must not outlive the tests.
        except BaseException:
            self.close()
            raise

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all daemons and what they have started."""
        # The nodes first, as the controller would wait for them.
        for name in reversed(self._processes):
            process = self._processes[name]
            # A node's daemon ends only after its jobs.
            process.send_signal(signal.SIGKILL if name in NODES else signal.SIGTERM)
        for process in self._processes.values():
            process.wait(timeout=30)
        self._processes.clear()

    def start_node(self, node: str) -> None:
        """Start a node's daemon in namespaces of its own and wait until the node is idle."""
        hosts, conf = self.root / "etc/hosts", self.environment["SLURM_CONF"]
        inside = (
            # In its own namespaces: the machine's name and hosts file stay as they are.
            f"hostname {node} && mount --bind '{hosts}' /etc/hosts && "
            f"slurmd -D -N {node} -f '{conf}' & wait; exit 0"
        )
        spaces = [
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--uts",
            "--mount",
            "--propagation",
            "private",
        ]

        self._start(node, "unshare", *spaces, "sh", "-c", inside)
        self._until(
            lambda: self.run("sinfo", "-hN", "-n", node, "-o", "%T").strip() == "idle", 60, node
        )

    def kill_node(self, node: str) -> None:
        """Kill a node with all that runs on it, without notice."""
        # No longer watched: its end is what the test wants.
        process = self._processes.pop(node)
        process.kill()
        process.wait(timeout=10)

    def run(
        self,
        *words: str,
        check: bool = True,
        cwd: Path | None = None,
        timeout_s: float = 60,
        **variables: str,
    ) -> str:
        """Run a command of SLURM's (or a script) and return what it prints on both streams."""
        done = subprocess.run(
            words,
            env=self.environment | variables,
            cwd=cwd,
            stdout=subprocess.PIPE,
            # Together, as SLURM writes answers to either.
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        if check and done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}: {done.stdout}")

        return done.stdout

    def submit(self, script: Path, *words: str, cwd: Path, **variables: str) -> str:
        """Submit through the script itself; return the job's id."""
        text = self.run(str(script), *words, cwd=cwd, **variables)
        found = re.match(r"job (\d+)", text)
        assert found, text
        return found[1]

    def field(self, job: str, name: str) -> str:
        """Return a field of `scontrol show job`."""
        # From scontrol: squeue forgets a job as soon as it has ended.
        found = re.search(rf"\b{name}=(\S*)", self.run("scontrol", "-o", "show", "job", job))
        return found[1] if found else ""

    def wait(self, job: str, *states: str, timeout_s: float = 300) -> str:
        """Wait until a job is in one of the states (default: ended); return the state."""
        wanted = states or ENDED
        self._until(
            lambda: self.field(job, "JobState") in wanted, timeout_s, f"job {job} to be {wanted}"
        )
        return self.field(job, "JobState")

    def wait_for(self, happened: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
        """Wait for anything else."""
        self._until(happened, timeout_s, what)

    def jobs(self) -> list[str]:
        """Return the queue: `id state reason` per job."""
        return self.run("squeue", "-h", "-o", "%i %T %r").splitlines()

    def _until(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s

        while not happened():
            # A dead daemon is the better message than a wait of minutes.
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise AssertionError(
                        f"{name} ended with {process.returncode}; see {self.root / 'log'}"
                    )
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout_s} s for {what}; queue: {self.jobs()}")
            # Each look starts a program of SLURM's.
            time.sleep(0.3)

    def _start(self, name: str, *words: str) -> None:
        log = (self.root / "log" / f"{name}.out").open("ab")

        with log:
            self._processes[name] = subprocess.Popen(
                # Killed with the test's process, also where that is killed itself.
                ["setpriv", "--pdeathsig", "KILL", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _munge_options(self) -> Sequence[str]:
        run = self.root / "run"
        return (
            f"--key-file={self.root / 'etc/munge.key'}", f"--socket={run / 'munge.sock'}",
            f"--pid-file={run / 'munged.pid'}", f"--seed-file={run / 'munged.seed'}",
            f"--log-file={self.root / 'log/munged.log'}",
        )  # fmt: skip

    def _write_files(self) -> None:
        for folder in ("etc", "run", "state", "spool/node1", "spool/node2", "log", "dev"):
            (self.root / folder).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(
            host=host, root=self.root, controller_port=_free_port(), node_port=_free_port()
        )

        etc = self.root / "etc"
        (etc / "slurm.conf").write_text(text)
        (etc / "gres.conf").write_text(
            f"NodeName=node[1-2] Name=gpu File={self.root}/dev/nvidia[0-7]\n"
        )
        for number in range(8):
            # SLURM counts GPUs by their files; nothing opens them.
            (self.root / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        (etc / "hosts").write_text(
            f"127.0.0.1 localhost {host}\n127.0.0.1 node1\n127.0.0.2 node2\n"
        )
        # A new key each time: two clusters must not take each other's messages.
        (etc / "munge.key").write_bytes(os.urandom(128))
        (etc / "munge.key").chmod(0o600)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
