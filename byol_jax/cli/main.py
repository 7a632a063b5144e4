"""`byol-jax`: finds the sub-command, reads its options, runs it. Imports nothing heavy.

A sub-command is a module in commands/ with `USAGE`, `add_arguments(parser)`, `check(options) -> list[str]` (what is
wrong with the options together, before anything heavy is imported) and `run(options) -> int`.
"""

import importlib
import io
import sys
from collections.abc import Sequence
from types import ModuleType

from byol_jax import __version__
from byol_jax.cli.boundary import guard
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError, nearest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train an encoder on unlabelled images",
    "evaluate": "measure a run's features: kNN and linear probe, with controls",
    "embed": "write a run's or a network's features of images to a file",
    "export": "write a run's encoder as a PyTorch state dict",
    "import": "check a PyTorch state dict against a network and write it as .safetensors",
    "convert": "rewrite a weight file in another format",
    "preview": "draw the two views of some images, as training will see them",
    "presets": "list the recipes that train --preset takes, with their sources and results",
    "bench": "time the training step (in a checkout)",
    "demo": "train on the embedded images and measure the result",
    "env": "print versions and devices",
}
"""Sub-command to what it does, in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own); returns the exit code.

    Example:
        >>> main(["--version"])
        byol-jax 0.1.0
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words[: words.index("--")] if "--" in words else "--debug" in words
    name = next((word for word in words if not word.startswith("-")), "")
    command = f"byol-jax {name}" if name in COMMANDS else "byol-jax"
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")  # a path that isn't text is printed as the bytes that it is
    return guard(command, lambda: _dispatch(words, name), debug=debug)


def _dispatch(words: list[str], name: str) -> int:
    """Runs the sub-command `name`; words before it may only be options of `byol-jax` itself."""
    position = words.index(name) if name else len(words)
    before, after = words[:position], words[position + 1 :]
    misplaced = [word for word in before if name and word not in ("-h", "--help", "--version", "--debug")]
    if misplaced:
        raise ConfigurationError(f"{misplaced[0]} stands before the sub-command: write byol-jax COMMAND, then options")
    if not name or set(before) - {"--debug"}:
        return _without_command(before)
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigurationError(
            f"{name!r} is not a sub-command, {nearest(name, COMMANDS, at_most=1)[0]} is the nearest of {known}"
        )
    command = _module(name)
    parser = Parser(f"byol-jax {name}", command.USAGE, f"{COMMANDS[name].capitalize()}.")
    command.add_arguments(parser)
    options = parser.read(after)
    problems = command.check(options)
    if problems:
        parser.error("; ".join(problems))
    return command.run(options)


def _without_command(words: list[str]) -> int:
    """`--help`, `--version`, or the complaint that no sub-command is named."""
    parser = Parser("byol-jax", "COMMAND [options]", "Self-supervised image pre-training (BYOL) in JAX.")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    width = max(map(len, COMMANDS))
    parser.formatter_class = _keep_line_breaks
    parser.epilog = "\n".join(
        [
            "commands:",
            *(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "byol-jax COMMAND --help says more.",
            "Exit code: 0 done, 1 failed, 2 something to change on your side, 130 stopped (Ctrl-C, train: or SIGTERM).",
        ]
    )
    if parser.read(words).version:
        print(f"byol-jax {__version__}")
        return 0
    parser.error(f"name a sub-command, one of {', '.join(COMMANDS)}")


def _keep_line_breaks(prog: str):
    """argparse's formatter that keeps the line breaks of the list of commands."""
    import argparse

    return argparse.RawDescriptionHelpFormatter(prog)


def _module(name: str) -> ModuleType:
    """The sub-command's own file; `import` is a word of Python's, so its file ends in an underscore."""
    return importlib.import_module(f"byol_jax.cli.commands.{name}{'_' if name == 'import' else ''}")
