"""Options of the programs: a flag and a YAML key for each field of a dataclass."""

import argparse
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from reprlib import repr as short_repr
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from .command_line import Parser
from .typed import as_type, check_keys, field_types
from .user_files import expand_path, parse_file, reading

logger = logging.getLogger(__name__)

#: Separates the words of a user from those that a script appends.
DEFAULTS = "--defaults"
#: Bytes of a YAML file, which is slow to parse.
MAX_BYTES = 2**20


@dataclass
class Given:
    """Options that were given, by name."""

    values: dict[str, Any]  # typed by the user, or else set by a script or a YAML file
    typed: set[str]  # names of options that the user typed
    scripted: set[str]  # names of options that a script sets
    spelled: Mapping[str, str]  # name of an option in messages: as it was given, or as the original program calls it

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def pick(self, names: type | Iterable[str]) -> dict[str, Any]:
        """The given options among ``names``, or among the fields of a dataclass."""
        names = field_types(names) if isinstance(names, type) else names
        return {name: self.values[name] for name in names if self.values.get(name) is not None}

    def override(self, name: str, value: Any) -> None:
        """Replace the value of a script or a file by what follows from typed options, and log it."""
        if name in self.scripted - self.typed and self.values.get(name) not in (None, value):
            logger.info("--%s %s of the script is overridden by what was typed", name, self.values[name])
        self.values[name] = value

    def exclude(self, *names: str) -> None:
        """Keep the typed one of options that exclude each other; raises ValueError if there are several."""
        given = list(self.pick(names))
        kept = [name for name in given if name in self.typed] or given
        if len(kept) > 1:
            raise ValueError(f"{' and '.join(kept)} exclude each other: leave one of them out.")
        for name in set(given) - set(kept):
            self.override(name, None)

    def refuse_unread(self, *reasons: Mapping[str, str]) -> None:
        """Raise ValueError for a typed option that no run reads; ``reasons``: by name, for each run."""
        for name in reasons[0]:
            if name in self.typed and all(name in of_run for of_run in reasons):
                why = ", ".join(dict.fromkeys(of_run[name] for of_run in reasons))
                raise ValueError(f"{name}: no effect, as {why}; leave it out.")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Within the block, errors name options as they are spelled."""
        names = "|".join(self.spelled)
        try:
            yield
        except ValueError as error:
            if str(error).startswith(("policy ", "scorer ", "compactor ")):  # whose own options have these names, too
                raise
            found = re.sub(rf"(?<![-\w])({names})(?![-\w])", lambda name: self.spelled[name[0]], str(error))
            raise ValueError(found) from error


class OptionParser(Parser):
    """Makes options of dataclass fields; an option that is not given is absent.

    A script appends its own settings to the words of its user: ``"$@" --defaults --method flowcache``. Words
    before ``--defaults`` override those behind it, which override the YAML file.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(description, argument_default=argparse.SUPPRESS, **options)
        self._kinds: dict[str, Any] = {}
        self._spelled: dict[str, str] = {}

    def add_fields(
        self,
        group: str,
        kind: type,
        aliases: Mapping[str, Sequence[str]] | None = None,
        hidden: Collection[str] = (),
        defaults: Mapping[str, str] | None = None,
        choices: Mapping[str, Collection[Any]] | None = None,
    ) -> None:
        """Add an option for each field of a dataclass that is neither ``hidden`` nor an option already.

        The help of a field is ``help`` of its metadata, or its line in the docstring; ``defaults`` are shown
        in place of the field's. ``aliases`` are other names, that of the original program first.
        """
        to, lines = self.add_argument_group(group), _read_docstring(kind)
        for f in fields(kind):
            if f.name in hidden or f.name in self._kinds:
                continue
            text, shown = f.metadata.get("help") or lines.get(f.name, ""), (defaults or {}).get(f.name)
            if shown is None and "(default" not in text and text is not argparse.SUPPRESS:
                shown = "none" if f.default in (None, MISSING, "") else str(f.default).strip("()")
                shown = shown.lower() if isinstance(f.default, bool) else shown
            text = text if shown is None else f"{text} (default: {shown})"
            allowed = (choices or {}).get(f.name) or f.metadata.get("choices")
            known = (aliases or {}).get(f.name, ())
            self.add_option(f.name, field_types(kind)[f.name][0], text, known, allowed, to)

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
        """Add an option of a type, with a flag for each of its names."""
        inner = [of for of in get_args(kind) if of is not NoneType]
        base = inner[0] if NoneType in get_args(kind) else kind
        if get_origin(base) is Literal:
            base, choices = type(get_args(base)[0]), choices or get_args(base)
        self._kinds[name], self._spelled[name] = kind, aliases[0] if aliases else name
        flags, to = [f"--{n}" for n in (name, *aliases)], group or self
        more |= {"dest": name, "help": text.replace("%", "%%"), "type": base if base is Path else _reader(base)}
        if base is Mapping:
            more |= {"type": _read_pair, "action": "append", "metavar": "NAME=VALUE"}
            flags.append(f"--{name.removesuffix('s')}")
        elif base == tuple[str, ...]:
            more |= {"type": str, "action": "append"}
        elif base is bool:
            more |= {"nargs": "?", "const": True, "metavar": "BOOL"}
        elif choices:
            more["choices"] = choices
        to.add_argument(*flags, **more)
        if base is bool and base is not kind:
            negative = [flag.replace("--", "--no-") for flag in flags]
            to.add_argument(*negative, dest=name, action="store_false", help=f"opposite of --{name}")

    def ignore(self, names: Iterable[str]) -> None:
        """Accept options that nothing reads; a warning names them."""
        for name in names:
            self.add_argument(f"--{name}", nargs="?", help=argparse.SUPPRESS)
            self._kinds[name] = None

    def read(self, words: Sequence[str], file: str = "", default: Path | None = None) -> Given:
        """Read the words of a user and of scripts, and the YAML file that the option ``file`` names."""
        layers: list[list[str]] = [[]]
        for word in words:
            layers.append([]) if word == DEFAULTS else layers[-1].append(word)
        if layers[0] and not layers[0][0].startswith("-"):  # as MAGI-1's original takes the file
            layers[0].insert(0, f"--{file}")
        parsed = [vars(self.parse_args(layer)) for layer in layers]
        values = {name: value for layer in reversed(parsed) for name, value in layer.items()}
        collected = {Mapping: dict, tuple[str, ...]: tuple}
        values |= {n: collected[self._kinds[n]](v) for n, v in values.items() if self._kinds[n] in collected}
        spelled, path = dict(self._spelled), values.get(file, default)
        if path is not None:
            values = {**self._read_file(path, spelled), **values}
        for word in layers[0]:
            action = self._option_string_actions.get(word.partition("=")[0])
            if action is not None:
                spelled[action.dest] = word.partition("=")[0].removeprefix("--").removeprefix("no-")
        for name in sorted(n for n in values if self._kinds[n] is None):
            logger.warning("%s is ignored: neither the original nor this program reads it.", name)
        return Given(values, set(parsed[0]), {name for layer in parsed[1:] for name in layer}, spelled)

    def _read_file(self, path: Path, spelled: dict[str, str]) -> dict[str, Any]:
        content = parse_file(path, yaml.safe_load, "YAML", most=MAX_BYTES)
        names = [flag.removeprefix("--") for flag in self._option_string_actions]
        content, values = check_keys({} if content is None else content, names, str(path)), {}
        for key, value in content.items():
            action = self._option_string_actions[f"--{key}"]
            kind, place = self._kinds[action.dest] or Any, f"{path}: {key}"
            if is_path := Path in (kind, *get_args(kind)):
                kind = str | None
            value = as_type(value, kind, place, spelled=True)
            value = expand_path(value, place) if is_path and value else value
            if action.choices and value is not None and value not in action.choices:
                known = ", ".join(map(str, action.choices))
                raise ValueError(f"{place}: expected one of {known}, got {value!r}.")
            values[action.dest], spelled[action.dest] = value, key
        return values


class Refuse(argparse.Action):
    """A flag of the original programs that is refused; ``const`` says why and what to do instead."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, help=f"refused: {options['const']}", **options)

    def __call__(self, parser: argparse.ArgumentParser, *found: Any) -> NoReturn:
        """Refuse the flag as it was typed, the last of ``found``."""
        parser.error(f"{found[-1]}: {self.const}")


def _read_pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _reader(kind: Any) -> Callable[[str], Any]:
    """The function that reads a value of a type from a word, as YAML unless the type is text."""

    def read(text: str) -> Any:
        try:
            with reading(short_repr(text), "YAML"):
                # YAML 1.1 reads these as octal and in base 60
                is_plain = kind is str or re.fullmatch(r"[-+]?0\d+|[-+]?\d+(:\d+)+(\.\d*)?", text)
                value = text if is_plain else yaml.safe_load(text)
            return as_type(value, kind, "the value", spelled=True)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _read_docstring(kind: type) -> dict[str, str]:
    """Descriptions of fields in a docstring's list of arguments or attributes."""
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", inspect.getdoc(kind) or "", re.M)
    texts = {names: re.sub(r"\s+", " ", text).replace("``", "").rstrip(".") for names, text in entries}
    return {name: text for names, text in texts.items() for name in names.split(", ")}
