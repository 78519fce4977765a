"""``vit_jax launch slurm``: a batch job of SLURM, one task a host, that is queued again until the command has ended.

SLURM says who the tasks are, and JAX knows its variables. Before the time limit, or where the job is preempted, the
tasks get SIGTERM, save, and end with :data:`vit_jax.hosts.RESUME`; the job then asks to be queued again. The command
runs in the folder and in the Python from which it was launched, on a disk that the nodes share.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys

from vit_jax.cli import options
from vit_jax.cli.launch import request

HELP = "a batch job of a SLURM cluster, queued again until it has ended"
SCRIPT = """\
#!/bin/bash
{options}
{setup}srun {command}
status=$?
case $status in
{resume})
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    echo "vit_jax launch: exit status $status, queued again." >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi ;;
esac
exit $status
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this kind."""
    request.arguments(parser, "run", "status", "delete")
    options.value(parser, "nodes", 1, "machines", metavar="N")
    options.value(
        parser, "gpus_per_node", 0, "GPUs of each, a task for every one; 0: one task, on CPUs", 64, 0, metavar="N"
    )
    parser.add_argument("--cpus_per_task", type=options.number(1, 4096), metavar="N", help="cores of a task")
    parser.add_argument("--time", type=_time, metavar="[D-]HH:MM:SS", help="limit after which it is queued again")
    options.value(parser, "warning", 120, "seconds before the limit at which the tasks are told to save", metavar="S")
    options.value(parser, "restarts", 100, "how often it is queued again", least=0, metavar="N")
    parser.add_argument("--partition", type=options.filled, metavar="NAME", help="of the cluster")
    parser.add_argument("--account", type=options.filled, metavar="NAME", help="who pays")
    text = "an option of sbatch, --sbatch=--constraint=h100; may be repeated"
    parser.add_argument("--sbatch", type=options.filled, action="append", default=[], metavar="OPTION", help=text)
    text = "a line of the shell before the command, 'module load cuda'; may be repeated"
    parser.add_argument("--setup", type=options.filled, action="append", default=[], metavar="LINE", help=text)
    request.variables(parser)


def run(args: argparse.Namespace) -> int:
    """Does what the verb says."""
    return {"run": _run, "status": _status, "delete": _delete}[args.verb](args)


def script(args: argparse.Namespace) -> str:
    """The batch script."""
    gpus = [f"--gpus-per-node={args.gpus_per_node}"] if args.gpus_per_node else []
    chosen = [
        f"--job-name={args.name}", f"--nodes={args.nodes}", f"--ntasks-per-node={args.gpus_per_node or 1}", *gpus,
        *([f"--cpus-per-task={args.cpus_per_task}"] if args.cpus_per_task else []),
        *([f"--time={args.time}"] if args.time else []), f"--signal=TERM@{args.warning}", "--requeue",
        f"--output={args.name}-%j.log", "--open-mode=append",
        *([f"--partition={args.partition}"] if args.partition else []),
        *([f"--account={args.account}"] if args.account else []), *args.sbatch,
    ]  # fmt: skip
    exports = [f"export {name}={shlex.quote(value)}" for name, value in request.environment(args).items()]
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in chosen),
        setup="".join(f"{line}\n" for line in (*args.setup, *exports)),
        command=shlex.join([sys.executable, "-m", "vit_jax", *args.words]),
        resume=" | ".join(map(str, request.again())),
        restarts=args.restarts,
    )


def _run(args: argparse.Namespace) -> int:
    from vit_jax.launch import tools

    if args.dry_run:
        print(script(args), end="")
        return 0
    tools.needed("sbatch", "squeue")
    if jobs := _jobs(args):
        print(f"{args.name} is there: {jobs}; vit_jax launch slurm delete --name {args.name} ends it.")
        return 0
    job = tools.output(["sbatch", "--parsable"], stdin=script(args)).strip().partition(";")[0]
    print(f"{args.name}: job {job}, its output in {os.path.join(os.getcwd(), f'{args.name}-{job}.log')}")
    return 0


def _jobs(args: argparse.Namespace) -> str:
    """Jobs of that name that wait or run: "12 RUNNING, 13 PENDING"."""
    from vit_jax.launch import tools

    found = tools.output(_squeue(args)).strip()
    return ", ".join(line.strip() for line in found.split("\n") if line.strip())


def _squeue(args: argparse.Namespace) -> list[str]:
    return ["squeue", "--me", f"--name={args.name}", "--noheader", "--format=%i %T"]


def _status(args: argparse.Namespace) -> int:
    if args.dry_run:
        request.show(_squeue(args))
    else:
        print(f"{args.name}: {_jobs(args) or 'not there'}")
    return 0


def _delete(args: argparse.Namespace) -> int:
    from vit_jax.launch import tools

    words = ["scancel", f"--name={args.name}"]
    if args.dry_run:
        request.show(words)
    elif jobs := _jobs(args):
        tools.output(words)
        print(f"{args.name}: cancelled {jobs}")
    else:
        print(f"{args.name}: not there")
    return 0


def _time(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d{1,4}(:\d{1,2}){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no time limit; give 12:00:00 or 2-00:00:00")
    return text
