"""``vit_jax launch gcloud``: a slice of TPUs from Google Cloud, through its command line program.

The slice is asked for with the queue of Cloud TPU (or at once, ``--no_queue``). Once it is there, every host is sent
the package and the user's files, installs what they need in an environment of its own, and starts the command,
detached. Then the output of the first host is followed. Where the slice is taken away, or the command ends with
:data:`vit_jax.hosts.RESUME`, all that is done again. The launcher may be ended: its own command, once more, goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.cli import options
from vit_jax.cli.launch import request

HELP = "a slice of TPUs of Google Cloud: queue, stage, install, run, resume after preemption"
POLL = 30.0
"""Seconds between two looks at a slice."""
PATIENCE = 10
"""Looks in a row that may fail while the slice is said to be there."""
SILENT = 300.0
"""Seconds that a host has to answer."""
AWAY, LOST = "was taken away", "lost the command"
"""Ends of a run of which nobody knows an exit status."""
THERE = ("ACTIVE", "READY")
COMING = (
    "ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING",
    "UNHIDING",
)  # fmt: skip
LEAVING = ("DELETING", "SUSPENDING", "STOPPING", "HIDING")
GONE = ("SUSPENDED", "FAILED", "PREEMPTED", "TERMINATED", "STOPPED", "HIDDEN")
"""States of queued resources and of TPU VMs."""
HOST = """\
#!/bin/sh
# What a host does: install, start, run, look BYTES, stop.
cd "$(dirname "$0")" || exit 1
state() {
  printf 'state '
  if [ -s status ] && [ -e stopped ]; then echo "stopped $(cat status)"
  elif [ -s status ]; then echo "ended $(cat status)"
  elif [ ! -s pid ]; then echo none
  elif kill -0 "$(cat pid)" 2>/dev/null; then echo running
  else echo lost
  fi
}
case "$1" in
install)
  python3 -m pip install --quiet --user --upgrade uv &&
    python3 -m uv venv --quiet --allow-existing --python 3.12 venv &&
    python3 -m uv pip install --quiet --python venv/bin/python --requirement code/requirements.txt ;;
start)
  [ "$(state)" != 'state running' ] || exit 0
  rm -f status stopped
  setsid nohup sh "$PWD/host.sh" run >log 2>&1 </dev/null &
  echo $! >pid ;;
run)
  trap : TERM
  cd code && . ../environment
  export PYTHONPATH=. JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
  ../venv/bin/python -m vit_jax @WORDS@ &
  while :; do
    wait $!
    code=$?
    kill -0 $! 2>/dev/null || break
  done
  echo $code >../status ;;
look)
  state
  [ ! -e log ] || tail -c "+$2" log ;;
stop)
  [ "$(state)" != 'state running' ] || { : >stopped && kill -s TERM -- "-$(cat pid)"; } ;;
esac
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this kind."""
    request.arguments(parser, "run", "status", "tail", "stop", "delete")
    parser.add_argument("--zone", type=options.filled, required=True, help="where, us-west4-a for instance")
    parser.add_argument("--project", type=options.filled, help="who pays (default: what gcloud is configured for)")
    parser.add_argument("--type", type=options.filled, help="the slice, v5litepod-256 or v5e:16x16")
    parser.add_argument("--spot", action="store_true", help="cheaper, and taken away when others pay more")
    parser.add_argument("--no_queue", action="store_true", help="create it at once or fail, without queued resources")
    parser.add_argument(
        "--runtime", type=options.filled, help="software of the hosts (default: that of the kind of TPU)"
    )
    text = "an option that gcloud is given when it creates the slice, --gcloud=--network=NAME; may be repeated"
    parser.add_argument("--gcloud", type=options.filled, action="append", default=[], metavar="OPTION", help=text)
    options.value(parser, "restarts", 100, "how often it is started again", least=0, metavar="N")
    options.value(parser, "worker", 0, "host whose output is followed", least=0, metavar="N")
    parser.add_argument("--detach", action="store_true", help="leave once it is started; nobody then starts it again")
    parser.add_argument("--delete_after", action="store_true", help="give the slice back where the run ended well")
    request.variables(parser)
    request.shared_workdir(parser)


@dataclasses.dataclass(frozen=True)
class Machines:
    """A slice by its name, and the command lines about it.

    Attributes:
      name: of the slice, its queued resource, and the folder on its hosts.
      place: options that say where it is.
      queued: whether it is asked for with the queue.
    """

    name: str
    place: tuple[str, ...]
    queued: bool

    def about(self, verb: str, *more: str) -> list[str]:
        """Of the request: describe, create, delete."""
        return self._words("queued-resources" if self.queued else "tpu-vm", verb, self.name, *more)

    def describe(self) -> list[str]:
        """Prints its state."""
        return self.about("describe", f"--format=value({'state.state' if self.queued else 'state'})")

    def create(self, slice: Any, args: argparse.Namespace) -> list[str]:
        """Asks for it."""
        runtime = args.runtime or slice.generation.runtime
        software = f"--runtime-version={runtime}" if self.queued else f"--version={runtime}"
        node = [f"--node-id={self.name}"] if self.queued else []
        spot = ["--spot"] if args.spot else []
        return self.about("create", *node, f"--accelerator-type={slice.type}", software, *spot, *args.gcloud)

    def delete(self) -> list[str]:
        """Gives it back."""
        return self.about("delete", *(["--force"] if self.queued else []), "--quiet")

    def send(self, file: str) -> list[str]:
        """Copies a file to all hosts."""
        return self._words("tpu-vm", "scp", file, f"{self.name}:", "--worker=all")

    def shell(self, command: str, worker: str = "all") -> list[str]:
        """Runs a command of the shell on hosts."""
        return self._words("tpu-vm", "ssh", self.name, f"--worker={worker}", f"--command={command}")

    def host(self, verb: str, worker: str = "all") -> list[str]:
        """Runs a verb of :data:`HOST`."""
        return self.shell(f"sh {self.name}/host.sh {verb}", worker)

    def unpack(self) -> list[str]:
        """Puts the files that were sent in their place and installs what they need."""
        inside = f"rm -rf {self.name}/code && tar -xzf {self.name}.tar.gz && sh {self.name}/host.sh install"
        return self.shell(inside)

    def look(self, offset: int, worker: int) -> list[str]:
        """Prints how the command is, and its output from a byte on, counted from 1."""
        return self.shell(f"sh {self.name}/host.sh look {offset} || [ ! -e {self.name}/host.sh ]", str(worker))

    def _words(self, group: str, verb: str, *more: str) -> list[str]:
        return ["gcloud", "compute", "tpus", group, verb, *more, *self.place]


def run(args: argparse.Namespace) -> int:
    """Does what the verb says."""
    place = (f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else []))
    machines = Machines(args.name, place, not args.no_queue)
    return {"run": _run, "status": _status, "tail": _tail, "stop": _stop, "delete": _delete}[args.verb](machines, args)


def host_script(words: Sequence[str]) -> str:
    """The script of a host that runs ``words``, a command of vit_jax."""
    return HOST.replace("@WORDS@", shlex.join(words))


def _run(machines: Machines, args: argparse.Namespace) -> int:
    from vit_jax.launch import staging, topologies
    from vit_jax.types import UsageError, UserError

    if not args.type:
        raise UsageError("--type says which slice of TPUs: v5litepod-256, or v5e:16x16 as plan takes it.")
    slice = topologies.find(args.type)
    request.check(args, slice.hosts)
    files = staging.own_files(args.words)
    if args.dry_run:
        request.show(
            machines.describe(), machines.create(slice, args), machines.describe(),
            machines.send(f"{args.name}.tar.gz"), machines.unpack(), machines.host("start"),
            machines.look(1, args.worker),
        )  # fmt: skip
        return 0
    try:
        for _ in range(args.restarts + 1):
            status = _once(machines, args, slice, files)
            if status is not None:
                return status
        raise UserError(f"{args.name} was started {args.restarts + 1} times and has not ended; {_cleanup(args)}.")
    except KeyboardInterrupt:
        request.say(f"what there is of {args.name} stays, and the same command goes on; {_cleanup(args)}")
        raise


def _once(machines: Machines, args: argparse.Namespace, slice: Any, files: Sequence[str]) -> int | None:
    """Has the slice and runs the command there; its exit status, or None where it is to be done again."""
    from vit_jax.launch import tools

    _have(machines, args, slice)
    try:
        _start(machines, args, slice, files)
    except tools.Failed:
        if _state(machines) in THERE:
            raise
        request.say(f"{args.name} {AWAY}: once more")
        return None
    if args.detach:
        request.say(f"vit_jax launch gcloud tail {_named(args)} shows its output")
        return 0
    state = _follow(machines, args)
    if state in (AWAY, LOST, *(f"ended {status}" for status in request.again())):
        request.say(f"{args.name} {state if state in (AWAY, LOST) else 'stopped and can go on'}: once more")
        return None
    how, status = state.split()
    if status == "0" and args.delete_after:
        return _delete(machines, args)
    paid = f"{args.name} is paid for until it is deleted: {_cleanup(args)}"
    request.say(f"the run {how} with exit status {status}; {paid}")
    return int(status)


def _start(machines: Machines, args: argparse.Namespace, slice: Any, files: Sequence[str]) -> None:
    """Starts the command on a slice that is there, unless it runs."""
    from vit_jax.launch import tools

    there = f"{args.name} is there and is paid for; {_cleanup(args)}"
    if _state_of(tools.output(machines.look(1, args.worker), there, seconds=SILENT))[0] == "running":
        request.say(f"{args.name} runs it already")
        return
    _stage(machines, args, files, there)
    tools.output(machines.host("start"), there)
    request.say(f"{args.name} runs it on {slice.hosts} host{'s' if slice.hosts > 1 else ''}")


def _have(machines: Machines, args: argparse.Namespace, slice: Any) -> None:
    """Returns once the slice is there; what was taken away is asked for anew."""
    from vit_jax.launch import tools
    from vit_jax.types import UserError

    asked, said = False, ""
    while (state := _state(machines)) not in THERE:
        there = f"{args.name} may be there; {_cleanup(args)}"
        if state is None:
            tools.output(machines.create(slice, args), there)
            asked = True
            request.say(f"{args.name}: asked for {slice.type} in {args.zone}")
        elif state in GONE and asked:
            raise UserError(f"{args.name} came to be {state}; gcloud may say why. {_cleanup(args)}.")
        elif state in GONE:
            request.say(f"{args.name} is {state}: it is given back and asked for again")
            tools.output(machines.delete(), there)
        elif state in (*COMING, *LEAVING):
            if state != said:
                request.say(f"{args.name} is {state}; waiting")
            said = state
            time.sleep(POLL)
        else:
            raise UserError(f"{args.name} is in the state {state[:60]!r}, which is not known here. {_cleanup(args)}.")
    if not asked:
        request.say(f"{args.name} is {state}")


def _state(machines: Machines) -> str | None:
    """What gcloud says of the slice, None where there is none."""
    from vit_jax.launch import tools

    try:
        return tools.output(machines.describe()).strip() or None
    except tools.Failed as e:
        if "NOT_FOUND" in e.said or "not found" in e.said:
            return None
        raise


def _stage(machines: Machines, args: argparse.Namespace, files: Sequence[str], there: str) -> None:
    import tarfile
    import tempfile

    from vit_jax.io import atomic
    from vit_jax.launch import staging, tools

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, args.name)
        (folder / "code").mkdir(parents=True)
        staging.fill(folder / "code", ("tpu", "remote"), files)
        atomic.write_text(folder / "host.sh", host_script(args.words))
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in request.environment(args).items()]
        atomic.write_text(folder / "environment", "".join(lines))
        archive = f"{folder}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, args.name)
        request.say(f"{args.name}: sending the package and {len(files)} file{'s' * (len(files) != 1)}, then installing")
        tools.output(machines.send(archive), there)
    tools.output(machines.unpack(), there)


def _follow(machines: Machines, args: argparse.Namespace) -> str:
    """Prints the output of a host until its command ends.

    Returns:
      ``"ended N"`` with the exit status, ``"stopped N"`` where that was asked for, :data:`LOST` where the host does not
      know, :data:`AWAY` where the slice is not there.
    """
    from vit_jax.launch import tools

    offset, failures = 1, 0
    while True:
        try:
            words = machines.look(offset, args.worker)
            state, text = _state_of(tools.output(words, _cleanup(args), seconds=SILENT))
        except tools.Failed:
            failures += 1
            if _state(machines) not in THERE:
                return AWAY
            if failures >= PATIENCE:
                raise
        else:
            failures = 0
            if text:
                print(text, end="", flush=True)
                offset += len(text.encode("utf-8", "surrogateescape"))
            if state != "running":
                return state if state.startswith(("ended ", "stopped ")) else LOST
        time.sleep(POLL)


def _state_of(text: str) -> tuple[str, str]:
    """``(running | ended N | stopped N | lost | none, output)`` of what ``look`` printed, behind words of the login."""
    found = re.search(r"^state (.*)\n", text, re.MULTILINE)
    return (found[1], text[found.end() :]) if found else ("none", "")


def _status(machines: Machines, args: argparse.Namespace) -> int:
    from vit_jax.launch import tools

    if args.dry_run:
        request.show(machines.describe(), machines.look(1, args.worker))
        return 0
    if (state := _state(machines)) in THERE:
        state = f"{state}; the command: {_state_of(tools.output(machines.look(1, args.worker)))[0]}"
    print(f"{args.name}: {state or 'not there'}")
    return 0


def _tail(machines: Machines, args: argparse.Namespace) -> int:
    from vit_jax.types import UserError

    if args.dry_run:
        request.show(machines.look(1, args.worker))
        return 0
    if (state := _follow(machines, args)) in (AWAY, LOST):
        raise UserError(f"nothing runs on {args.name}; vit_jax launch gcloud status {_named(args)} says what there is.")
    return int(state.split()[1])


def _stop(machines: Machines, args: argparse.Namespace) -> int:
    return _done(args, "it saves and ends", machines.host("stop"))


def _delete(machines: Machines, args: argparse.Namespace) -> int:
    if not args.dry_run and _state(machines) is None:
        print(f"{args.name}: not there")
        return 0
    return _done(args, "deleted", machines.delete())


def _done(args: argparse.Namespace, what: str, words: Sequence[str]) -> int:
    from vit_jax.launch import tools

    if args.dry_run:
        request.show(words)
        return 0
    tools.output(words)
    print(f"{args.name}: {what}")
    return 0


def _named(args: argparse.Namespace) -> str:
    project = f" --project {args.project}" if args.project else ""
    return f"--name {args.name} --zone {args.zone}{project}{' --no_queue' if args.no_queue else ''}"


def _cleanup(args: argparse.Namespace) -> str:
    return f"vit_jax launch gcloud delete {_named(args)} gives it back"
