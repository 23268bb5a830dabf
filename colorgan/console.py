"""The console command: `colorgan COMMAND WORDS` does what `python launcher/COMMAND.py WORDS` does.

    colorgan pretrain --nproc 2 --data.train DIR      two ranks on this machine

Ranks are started by torch's own launcher. The scripts are those of launcher/, which the wheel holds
as `colorgan/launcher`.
"""

from __future__ import annotations

import ast
import difflib
import logging
import os
import runpy
import sys
import tempfile
import uuid
from pathlib import Path
from typing import NoReturn

from colorgan.config.command import RANKED, run_command
from colorgan.errors import ColorganError, ExitStatus, UsageError

PACKAGE = Path(__file__).resolve().parent
ANSWERED_AT_ONCE = {"-h", "--help", "--version", "--schema"}


def main() -> NoReturn:
    """Run the command that the first word names."""
    run_command(_main, ColorganError)


def _main(words: list[str]) -> int:
    # Inherited by the ranks, so that their messages name commands as the user typed them.
    os.environ["COLORGAN_CONSOLE"] = "1"
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return ExitStatus.DONE
    if words[0] == "--version":
        words = ["pack", "--version"]
    if words[0] == "completion":
        # Here, as only this asks for shells' scripts.
        from colorgan.completion import completion_script

        print(completion_script(" ".join(words[1:]), launcher_folder().glob("*.py")))
        return ExitStatus.DONE

    script = _find_script(words[0])
    num_ranks, rest = _take_num_ranks(words[1:])
    if num_ranks > 1 and script.stem not in RANKED:
        raise UsageError(f"--nproc: {script.stem} runs in one process")
    # In this process: torch's launcher costs seconds that `--help` need not wait for.
    if num_ranks == 1 or ANSWERED_AT_ONCE & set(rest):
        sys.argv = [str(script), *rest]
        runpy.run_path(str(script), run_name="__main__")
        return ExitStatus.DONE  # the script exits itself

    return _run_ranks(script, rest, num_ranks)


def launcher_folder() -> Path:
    """Return the folder of the commands' scripts: in the wheel, or in the checkout."""
    installed = PACKAGE / "launcher"
    return installed if installed.is_dir() else PACKAGE.parent / "launcher"


def _overview() -> str:
    lines = ["usage: colorgan COMMAND [--nproc N] [WORDS]", "", "commands:"]
    for script in sorted(launcher_folder().glob("*.py")):
        # Parsed, not imported: eleven scripts would load all their libraries for one line each.
        about = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {script.stem:16}{about.splitlines()[0]}")

    ranked = ", ".join(RANKED)
    lines += ["", f"--nproc N starts N ranks on this machine ({ranked})."]
    lines.append("colorgan completion bash|zsh|fish prints a script that completes these words.")
    return "\n".join([*lines, "", "colorgan COMMAND --help lists a command's keys."])


def _find_script(name: str) -> Path:
    scripts = {script.stem: script for script in launcher_folder().glob("*.py")}
    stem = name.replace("-", "_")
    if stem in scripts:
        return scripts[stem]

    near = difflib.get_close_matches(stem, scripts, n=1)
    advice = (
        f"did you mean {near[0]}?" if near else f"the commands are {', '.join(sorted(scripts))}"
    )
    raise UsageError(f"{name!r} is not a command; {advice}")


def _take_num_ranks(words: list[str]) -> tuple[int, list[str]]:
    """Return the number of ranks and the words without `--nproc N`."""
    rest = list(words)
    text = "1"
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") not in ("--nproc", "--nproc-per-node"):
            continue
        text = value if equals else "".join(words[index + 1 : index + 2])
        del rest[index : index + (1 if equals else 2)]
        break

    if not text.isdigit() or int(text) == 0:
        raise UsageError(f"--nproc {text!r}: a number of ranks of at least 1, one per GPU")
    return int(text), rest


def _run_ranks(script: Path, words: list[str], num_ranks: int) -> int:
    """Start the ranks and wait for them; return the status of the first that failed."""
    _announce(script, words, num_ranks)
    # Here: it takes seconds, and the user shall read the first lines before.
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The ranks print themselves what is wrong; torch's launcher logs each ending on top.
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="colorgan-") as statuses:
        os.environ["COLORGAN_STATUS_DIR"] = statuses
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_ranks,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            # Any free port: two runs on one machine must not meet.
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.1,
            # By default torch makes a temporary folder and leaves it.
            logs_specs=DefaultLogsSpecs(log_dir=statuses),
        )
        try:
            elastic_launch(config, sys.executable)(str(script), *words)
        except ChildFailedError as error:
            _, first = error.get_first_failure()
            # A negative code is a signal's number; shells say 128 + number.
            return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
        except SignalException as error:
            return _status_after(error.sigval, Path(statuses))
    return ExitStatus.DONE


def _announce(script: Path, words: list[str], num_ranks: int) -> None:
    """Check a training command's settings and print its first lines, in its ranks' place.

    Raises:
        UsageError: A mistake in the settings, which every rank would find seconds later.
    """
    # Here, as `--help` and the list of commands need no schema.
    from colorgan.config.first_line import PRINTED, print_first_lines

    names = runpy.run_path(str(script))
    if "read_settings" not in names:
        return

    print_first_lines(script.stem, names["read_settings"](words), num_ranks)
    os.environ[PRINTED] = "1"  # inherited by the ranks


def _status_after(signal_number: int, statuses: Path) -> int:
    """Return the status of a launch that a signal has ended: that of its ranks, if all agree."""
    # torch's launcher turns every failure into 1; the ranks have left their own statuses.
    given = {path.read_text().strip() for path in statuses.glob("rank-*")}
    if len(given) == 1:
        return int(given.pop())
    return 128 + int(signal_number)
