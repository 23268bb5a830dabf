"""The words of a command line, sorted into keys with their values, bare words, and mistakes.

Only the form is judged here; `colorgan.config.values` reads the values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from colorgan.config.keys import Key
from colorgan.config.settings import show

_OPTION = re.compile(r"--[A-Za-z_]")
_SINGLE_DASH = re.compile(r"-[A-Za-z_]")
_ASSIGNMENT = re.compile(r"[+~]{0,2}([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_BOOLEANS = ("true", "false", "yes", "no", "on", "off")

# What launchers take, and `python SCRIPT` does not: behind the script's name it would do nothing.
LAUNCHER_OPTIONS = {
    "config_file",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "multi_gpu",
    "cpu",
    "gpu_ids",
    "mixed_precision",
    "dynamo_backend",
    "num_cpu_threads_per_process",
    "use_deepspeed",
    "use_fsdp",
    "deepspeed",
    "deepspeed_config",
    "zero_stage",
    "offload_optimizer_device",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "nproc_per_node",
    "nnodes",
    "node_rank",
    "master_addr",
    "master_port",
    "standalone",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "max_restarts",
    "num_gpus",
    "num_nodes",
    "hostfile",
    "include",
    "exclude",
    "local_rank",
}


@dataclass
class Words:
    """A command line taken apart.

    Attributes:
        options: The words after each key. A list key that is given twice has the words of both; of
            any other key the last one counts.
        bare: Words that follow no key.
        help: "" without --help, else "usual" or "all".
        version: True with --version.
        schema: True with --schema.
        problems: Mistakes in the form, a line for each.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    help: str = ""
    version: bool = False
    schema: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class _Reader:
    """Reads the words one after the other; `name` is the key that the next word belongs to."""

    keys: Mapping[str, Key]
    aliases: Mapping[str, str]
    positional: str | None
    words: Words = field(default_factory=Words)
    name: str | None = None
    skipping: bool = False  # the values of a word that is a mistake itself

    def read(self, word: str) -> None:
        if word in ("-h", "--help"):
            # What follows is about the help, not a value of the key before it.
            self.words.help, self.name = "usual", None
        elif word == "all" and self.words.help == "usual" and self.name is None:
            self.words.help = "all"
        elif word == "--version":
            self.words.version = True
        elif word == "--schema":
            self.words.schema = True
        elif _OPTION.match(word):
            self._option(word[2:])
        elif _SINGLE_DASH.match(word):
            self._single_dash(word)
        elif (match := _ASSIGNMENT.fullmatch(word)) and self._known(match[1]):
            self._assignment(word, match)
        elif not self.skipping:
            self._value(word)

    def _known(self, name: str) -> str | None:
        name = name.replace("-", "_")
        name = self.aliases.get(name, name)
        return name if name in self.keys else None

    def _option(self, text: str) -> None:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        # Only with this rank's own number: typed by a user it is still a mistake.
        if name == "local_rank" and value == os.environ.get("LOCAL_RANK"):
            return  # DeepSpeed's launcher adds it

        # Unknown names are kept as they are: the schema reports them with the nearest key.
        name = self._known(name) or name
        # Its values would be reported as stray words, each on a line.
        self.skipping = name in LAUNCHER_OPTIONS and name not in self.keys
        if self.skipping:
            self.words.problems.append(
                f"--{name}: an option of the launcher; write it before the script: "
                f"`accelerate launch --{name} ... launcher/SCRIPT.py ...`"
            )
            self.name = None
            return

        if name == "config" and name not in self.keys and name in self.words.options:
            self.words.problems.append("--config: given twice; put both recipes into one file")
        key = self.keys.get(name)
        before = self.words.options.get(name, []) if key is not None and key.is_list else []
        self.words.options[name] = [*before, value] if equals else before
        self.name = None if equals else name

    def _single_dash(self, word: str) -> None:
        name = self._known(word[1:].partition("=")[0])
        advice = f"write --{name}" if name else "a value that starts with a dash goes after `=`"
        if not name and self.positional:
            advice = "names that start with a dash go after `--`"
        self.words.problems.append(f"{show(word)}: keys start with two dashes; {advice}")
        self.name, self.skipping = None, True

    def _assignment(self, word: str, match: re.Match[str]) -> None:
        self.words.problems.append(f"{show(word)}: write --{self._known(match[1])} {match[2]}")

    def _value(self, word: str) -> None:
        name = self.name
        # Without bare words all that follows a key belongs to it, as lists need.
        if name is None or (self.positional and not self._takes_another(name, word)):
            self.words.bare.append(word)
        else:
            self.words.options[name].append(word)

    def _takes_another(self, name: str, word: str) -> bool:
        """Return whether a key takes one more word where words may also be bare."""
        key, values = self.keys.get(name), self.words.options[name]
        if key is not None and key.is_list:
            return True
        if key is not None and key.kinds == {bool}:
            return not values and word.lower() in _BOOLEANS
        return not values


def split_words(
    argv: Sequence[str],
    keys: Mapping[str, Key],
    aliases: Mapping[str, str],
    positional: str | None,
) -> Words:
    """Sort the words of a command line.

    Args:
        argv: The words after the script's name.
        keys: The schema's keys by name.
        aliases: Keys by the other names that users type.
        positional: The list key that takes bare words, if there is one.
    """
    reader = _Reader(keys, aliases, positional)
    for index, word in enumerate(argv):
        if word == "--":
            reader.words.bare += argv[index + 1 :]
            break
        reader.read(word)

    return reader.words
