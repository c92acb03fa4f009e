"""Options of the programs: a flag and a YAML key for each field of a dataclass."""

from __future__ import annotations

import argparse
import difflib
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from reprlib import repr as short_repr
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from .command_line import Parser
from .typed import as_type, field_types
from .user_files import expand_path, parse_file, reading

logger = logging.getLogger(__name__)

#: Separates the words of a user from those that a script appends.
DEFAULTS = "--defaults"

#: Bytes of a YAML file, which is slow to parse.
MAX_BYTES = 2**20


@dataclass
class Given:
    """Options that were given, by name.

    Attributes:
        values: of options that a user typed, or else that a script or a YAML file sets.
        typed: names of those that the user typed.
        scripted: names of those that a script sets.
        spelled: how messages name an option: as it was given, or as the original program calls it.
    """

    values: dict[str, Any]
    typed: frozenset[str]
    scripted: frozenset[str]
    spelled: Mapping[str, str]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option; ``default`` if it was not given."""
        value = self.values.get(name)
        return default if value is None else value

    def pick(self, names: type | Iterable[str]) -> dict[str, Any]:
        """The given options among ``names``, or among the fields of a dataclass."""
        names = [f.name for f in fields(names)] if isinstance(names, type) else names
        return {name: self.values[name] for name in names if self.values.get(name) is not None}

    def override(self, name: str, value: Any) -> None:
        """Replace what a script or a file sets by what follows from typed options, and log it."""
        if name in self.scripted - self.typed and self.values.get(name) not in (None, value):
            logger.info("--%s %s of the script is overridden by what was typed", name, self.values[name])
        self.values[name] = value

    def exclude(self, *names: str) -> None:
        """Keep the typed one of options that exclude each other.

        Raises:
            ValueError: several are typed, or several are set and none is typed.
        """
        given = list(self.pick(names))
        kept = [name for name in given if name in self.typed] or given
        if len(kept) > 1:
            raise ValueError(f"{' and '.join(kept)} exclude each other: leave one of them out.")
        for name in given:
            if name not in kept:
                self.override(name, None)

    def copy(self, **values: Any) -> Given:
        """A copy with other values."""
        return replace(self, values={**self.values, **values})

    def refuse_unread(self, *reasons: Mapping[str, str]) -> None:
        """Refuse a typed option that no run reads.

        Args:
            reasons: for each run, why it does not read an option, by its name.

        Raises:
            ValueError: one sentence that names the option.
        """
        for name in reasons[0]:
            if name in self.typed and all(name in of_run for of_run in reasons):
                why = ", ".join(dict.fromkeys(of_run[name] for of_run in reasons))
                raise ValueError(f"{name} has no effect: {why}; leave it out.")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within the block, errors name options as they are spelled."""
        other = {name: spelled for name, spelled in self.spelled.items() if name != spelled}
        try:
            yield
        except ValueError as error:
            words = re.compile(rf"(?<![-\w])({'|'.join(other) or '$.'})(?![-\w])")
            error.args = (words.sub(lambda found: other[found[0]], str(error)),)
            raise


class OptionParser(Parser):
    """Makes options of dataclass fields; everything that is not given is absent.

    A script appends its own settings to the words of its user: ``"$@" --defaults --method flowcache``. Words
    before ``--defaults`` override those behind it, which override the YAML file.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(description, argument_default=argparse.SUPPRESS, **options)
        self._kinds: dict[str, Any] = {}
        self._spelled: dict[str, str] = {}
        self._ignored: set[str] = set()

    def add_fields(
        self,
        group: str,
        kind: type,
        aliases: Mapping[str, Sequence[str]] | None = None,
        hidden: Collection[str] = (),
        defaults: Mapping[str, str] | None = None,
        choices: Mapping[str, Collection[Any]] | None = None,
    ) -> None:
        """Add an option for each field that is not ``hidden``.

        Args:
            group: heading in the help.
            kind: a dataclass; a field's help is ``help`` of its metadata, or its line in the docstring.
            aliases: other names of an option, the original's first.
            defaults: text for the help in place of a field's default.
            choices: values that an option may have.
        """
        to, lines = self.add_argument_group(group), _read_docstring(kind)
        for f in fields(kind):
            if f.name in hidden or f.name in self._kinds:
                continue
            text = f.metadata.get("help") or lines.get(f.name, "")
            shown = (defaults or {}).get(f.name)
            if shown is None and "(default" not in text:
                shown = "none" if f.default in (None, MISSING, "") else _show(f.default)
            self.add_option(
                f.name,
                field_types(kind)[f.name][0],
                text if shown is None else f"{text} (default: {shown})",
                (aliases or {}).get(f.name, ()),
                (choices or {}).get(f.name) or f.metadata.get("choices"),
                to,
            )

    def add_option(
        self,
        name: str,
        kind: Any,
        text: str,
        aliases: Sequence[str] = (),
        choices: Collection[Any] | None = None,
        group: Any = None,
        **more: Any,
    ) -> None:
        """Add an option of that type, a flag for each of its names."""
        (base,) = (
            [of for of in get_args(kind) if of is not NoneType] if NoneType in get_args(kind) else [kind]
        )
        self._kinds[name], self._spelled[name] = kind, aliases[0] if aliases else name
        more |= {"dest": name, "help": text.replace("%", "%%")}
        names = [name, *aliases]
        if get_origin(base) is Literal:
            base, choices = type(get_args(base)[0]), choices or get_args(base)
        if base is bool:
            more |= {"action": _Switch}
            names += [f"no-{n}" for n in names if base is not kind]
        elif base is Mapping:
            more |= {"action": _Pairs, "metavar": "NAME=VALUE"}
            names.append(name.removesuffix("s"))
        else:
            more |= {"type": _reader(base), "metavar": None if choices else name.upper()}
            more |= {"choices": choices} if choices else {}
        (group or self).add_argument(*(f"--{n}" for n in names), **more)

    def ignore(self, names: Iterable[str]) -> None:
        """Accept options that nothing reads; a warning names them."""
        for name in names:
            self.add_argument(f"--{name}", nargs="?", help=argparse.SUPPRESS)
            self._kinds[name] = Any
            self._ignored.add(name)

    def read(self, words: Sequence[str], file: str = "", default: Path | None = None) -> Given:
        """Read the words of a user and of scripts, and the YAML file that the option ``file`` names.

        Raises:
            ValueError: the file cannot be read, or has an unknown key or a value of another type.
            SystemExit: a word is wrong.
        """
        layers: list[list[str]] = [[]]
        for word in words:
            layers.append([]) if word == DEFAULTS else layers[-1].append(word)
        parsed = [vars(self.parse_args(layer)) for layer in layers]
        values = {name: value for layer in reversed(parsed) for name, value in layer.items()}
        spelled = dict(self._spelled)
        path = values.get(file, default)
        if path is not None:
            values = {**self._read_file(path, spelled), **values}
        for word in layers[0]:
            flag = word.partition("=")[0]
            if flag in self._option_string_actions:
                spelled[self._option_string_actions[flag].dest] = flag.removeprefix("--").removeprefix("no-")
        for name in sorted(self._ignored & values.keys()):
            logger.warning("%s is ignored: neither the original nor this program reads it.", name)
        typed, *scripted = map(frozenset, parsed)
        return Given(values, typed, frozenset().union(*scripted), spelled)

    def _read_file(self, path: Path, spelled: dict[str, str]) -> dict[str, Any]:
        content = parse_file(path, yaml.safe_load, "YAML", most=MAX_BYTES)
        content = check_mapping({} if content is None else content, str(path))
        check_keys(content, [flag.removeprefix("--") for flag in self._option_string_actions], str(path))
        values = {}
        for key, value in content.items():
            action = self._option_string_actions[f"--{key}"]
            kind, place = self._kinds[action.dest], f"{path}: {key}"
            if kind is Path and isinstance(value, str):
                value = expand_path(value, place)
            try:
                value = as_type(value, kind, place, spelled=True)
            except ValueError as error:
                raise ValueError(f"{error}.") from error
            if action.choices and value is not None and value not in action.choices:
                raise ValueError(
                    f"{place} must be one of {', '.join(map(str, action.choices))}, got {value!r}."
                )
            values[action.dest], spelled[action.dest] = value, key
        return values


class Refuse(argparse.Action):
    """A flag of the original programs that is refused; ``const`` says why and what to do instead."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, help=f"refused: {options['const']}", **options)

    def __call__(self, parser: argparse.ArgumentParser, *found: Any) -> NoReturn:
        """Refuse the flag as it was typed, the last of ``found``."""
        parser.error(f"{found[-1]}: {self.const}")


def check_mapping(content: Any, where: str) -> Any:
    """Return the content if it holds named values.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must hold named values, got {type(content).__name__}.")
    return content


def check_keys(content: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse the first unknown key, and name the known one that is most alike.

    Raises:
        ValueError: there is an unknown key.
    """
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:100], list(known), 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(f"{where}: there is no {str(key)[:100]}{hint}")


class _Switch(argparse.Action):
    """``--name``, ``--name true`` or ``--no-name``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs="?", metavar="BOOL", **options)

    def __call__(self, parser, namespace, value, flag=None):
        value = "true" if value is None else value
        try:
            value = _reader(bool)(value)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, value != flag.startswith("--no-"))


class _Pairs(argparse.Action):
    """``NAME=VALUE``, once for each; values stay text."""

    def __call__(self, parser, namespace, value, flag=None):
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise argparse.ArgumentError(self, f"expected NAME=VALUE, got {value!r}")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), name: text})


def _reader(kind: Any) -> Callable[[str], Any]:
    """The function that reads a value of a type from a word of the command line, as YAML unless it is text."""

    def read(text: str) -> Any:
        try:
            if kind is Path:
                return expand_path(text)
            with reading(short_repr(text), "YAML"):
                value = text if kind is str else yaml.safe_load(text)
            return as_type(value, kind, "the value", spelled=True)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _read_docstring(kind: type) -> dict[str, str]:
    """Descriptions of fields in a docstring's list of arguments or attributes."""
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", inspect.getdoc(kind) or "", re.M)
    texts = {names: re.sub(r"\s+", " ", text).replace("``", "").rstrip(".") for names, text in entries}
    return {name: text for names, text in texts.items() for name in names.split(", ")}


def _show(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else str(list(value) if isinstance(value, tuple) else value)
    )
