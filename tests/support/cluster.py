"""A throw-away SLURM of several nodes on this machine: munged, slurmctld and a slurmd a node, on free ports.

No systemd, cgroups or namespaces. What a node is stands in its slurmd alone: all share host and file system.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from support import launch

#: Where daemons lie, too.
SYSTEM_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A job is held back after a requeue until its old credentials have expired: two minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,requeue_delay=1
ReturnToService=2
SlurmdTimeout=60
InactiveLimit=0
MinJobAge=600
# MPICH names its shared memory after the number of the job: two clusters on this machine must not share one.
FirstJobId={first}
KillWait=10
JobRequeue=1
# PMIx makes a folder of the same name on each node.
TmpFS={folder}/tmp/%n
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""

NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=64000 State=UNKNOWN"
)


class Cluster:
    """Nodes n1, n2, ... of `cpus` CPUs each; they end with :meth:`stop`, and with this process.

    Parameters
    ----------
    folder : of configuration, state and logs
    nodes, cpus : nodes, and CPUs of each
    """

    def __init__(self, folder: Path, nodes: int, cpus: int):
        self.folder, self.nodes = folder, [f"n{number}" for number in range(1, nodes + 1)]
        self.configuration = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.configuration)}
        self._daemons: dict[str, subprocess.Popen] = {}
        own = [f"{kind}/{node}" for kind in ("spool", "tmp") for node in self.nodes]
        for name in ("log", "state", "munge", *own):
            (folder / name).mkdir(parents=True)
        host, (port, *ports) = socket.gethostname().split(".")[0], _free_ports(1 + nodes)
        lines = [
            NODE.format(name=node, host=host, port=its, cpus=cpus)
            for node, its in zip(self.nodes, ports, strict=True)
        ]
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        self.configuration.write_text(
            CONFIGURATION.format(
                host=host,
                port=port,
                user=user,
                first=random.randrange(1, 60_000_000),
                folder=folder,
                nodes="\n".join(lines),
            )
        )

    def start(self) -> None:
        """Start all daemons and wait until the nodes are there."""
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--socket={munge}/socket", *files)
        self._until((munge / "socket").exists, "munged does not start")
        self._start("slurmctld", "slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self._until(self._all_idle, "the nodes do not come up")

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node as a power cut would: its slurmd, and all that runs on it; and tell SLURM so.

        By itself it would notice in half a minute, or take a node of a machine with much to do for gone.
        """
        daemon = self._daemons.pop(node)
        tasks = self._processes(f"SLURMD_NODENAME={node}")
        _kill([daemon.pid, *filter(_is_step, map(_parent, tasks)), *tasks])
        daemon.wait()
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def stop(self) -> None:
        """Kill the daemons and all that they started."""
        while found := self._processes():
            _kill(found)
            for daemon in self._daemons.values():
                daemon.poll()
            time.sleep(0.05)
        self._daemons.clear()

    def run(self, *words, timeout=60, check=True, **environment) -> subprocess.CompletedProcess:
        """Run a command that talks to this cluster; as :func:`launch.run`."""
        return launch.run(words, timeout=timeout, check=check, env={**self.environment, **environment})

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM says of a job, such as JobState, Restarts and ExitCode."""
        said = self.run("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(word.partition("=")[::2] for word in said.split() if "=" in word)

    def _start(self, name: str, *words: str) -> None:
        # Whatever becomes of this process, the daemon does not outlive it.
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, "PATH": SYSTEM_PATH},
            )

    def _until(self, condition, failure: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [path.read_text(errors="replace")[-2000:] for path in (self.folder / "log").iterdir()]
                raise RuntimeError("\n".join([failure, *logs]))
            time.sleep(0.1)

    def _all_idle(self) -> bool:
        said = self.run("sinfo", "--noheader", "--states=idle", "--format=%D", check=False).stdout
        return said.strip() == str(len(self.nodes))

    def _processes(self, *also: str) -> list[int]:
        """Return the processes of this cluster: those whose environment names it, and holds `also`."""
        wanted, found = {f"SLURM_CONF={self.configuration}", *also}, []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                held = set((process / "environ").read_bytes().decode(errors="replace").split("\0"))
                if wanted <= held:
                    found.append(int(process.name))
        return found


def _parent(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _is_step(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().startswith("slurmstepd")
    return False


def _kill(processes) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
