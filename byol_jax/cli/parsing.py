"""Reading a command line: argparse, except that every wrong word is named, all of them in one message.

`Parser.read` looks at all words before argparse does, because argparse stops at the first mistake. What an option's
value may be is said by the converters in `values.py`; what options mean together, by each sub-command's `check`.
"""

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NoReturn

from byol_jax.errors import ConfigurationError, nearest

__all__ = ["Parser", "wrong_words"]


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors are one `ConfigurationError` with the nearest names in it.

    Options aren't abbreviated: a script that says `--step` must not change its meaning when `--step-size` appears.
    """

    def __init__(self, command: str, usage: str, description: str) -> None:
        super().__init__(
            prog=command, usage=f"{command} {usage}", description=description, allow_abbrev=False, add_help=False
        )
        self.add_argument("-h", "--help", action="help", help="show this text and stop")
        self.add_argument("--debug", action="store_true", help="show a traceback where something fails")

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see {self.prog} --help")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options that `words` stand for.

        Raises:
            ConfigurationError: one line that names every unknown option, wrong value and missing argument.
            SystemExit: with 0, after `--help` was answered.
        """
        if not {"-h", "--help"}.intersection(words):
            problems = list(wrong_words(self, words))
            if problems:
                self.error("; ".join(problems))
        with_value = {name for action in self._actions if action.nargs != 0 for name in action.option_strings}
        return self.parse_args(_joined(words, with_value))


def wrong_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """What is wrong with `words`, one phrase for each mistake, in the order in which they were written.

    Where an option is unknown, nobody can say which of the free words is its value: these aren't judged then.
    """
    options = {name: action for action in parser._actions for name in action.option_strings}
    positionals = [action for action in parser._actions if not action.option_strings]
    free, given, unknown = [], set(), False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            free += rest
            break
        if not _is_option(word):
            free.append(word)
            continue
        name, equals, value = word.partition("=")
        action = options.get(name)
        if action is None:
            unknown = True
            yield f"{name} is not an option, {_nearest_option(name, options)} is the nearest"
            continue
        given.add(action)
        if action.nargs == 0:
            if equals:
                yield f"{name} takes no value"
        elif not equals and (not rest or _is_option(rest[0])):
            yield f"{name} needs a value, {action.metavar}"
        else:
            yield from _wrong_value(action, name, value if equals else rest.pop(0))
    if not unknown:
        yield from _wrong_positionals(positionals, free)
    for action in options.values():
        if action.required and action not in given:
            given.add(action)
            yield f"{action.option_strings[-1]} {action.metavar} is missing"


def _wrong_positionals(positionals: Sequence[argparse.Action], free: Sequence[str]) -> Iterator[str]:
    if any(action.nargs == "*" for action in positionals):
        return
    for action, word in zip(positionals, free, strict=False):
        yield from _wrong_value(action, str(action.metavar), word)
    for action in (action for action in positionals[len(free) :] if action.nargs != "?"):
        yield f"{action.metavar} is missing, {action.help}"
    for word in free[len(positionals) :]:
        yield f"{word!r} is one word too many"


def _wrong_value(action: argparse.Action, name: str, value: str) -> Iterator[str]:
    """The converter's complaint about `value`, if it has one."""
    if callable(action.type):
        try:
            action.type(value)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            yield f"{name}: {error}"


def _is_option(word: str) -> bool:
    """A dash first, but neither a lone dash nor a text with a space, nor what begins with a negative number."""
    return len(word) > 1 and word[0] == "-" and " " not in word and not _is_negative(word)


def _is_negative(word: str) -> bool:
    return re.match(r"-\.?\d", word) is not None


def _joined(words: Sequence[str], with_value: Collection[str]) -> list[str]:
    """`--value-range=-1000:3000` of two words: argparse takes a value that begins with a dash for an option else.

    `with_value`: the options that take one.
    """
    joined: list[str] = []
    for word in words:
        option = joined[-1] if joined and "--" not in joined else ""
        if _is_negative(word) and option in with_value:
            joined[-1] = f"{option}={word}"
        else:
            joined.append(word)
    return joined


def _nearest_option(name: str, options: dict[str, argparse.Action]) -> str:
    """The option most like `name`; dashes aren't compared, they would make all of them alike."""
    bare = {option.lstrip("-"): option for option in options if option != "-h"}
    short = name.lstrip("-")
    begun = [option for option in bare if option.startswith(short)]  # an abbreviation
    return bare[nearest(short, begun or bare, at_most=1)[0]]
