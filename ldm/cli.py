"""Common parts of all commands: one-line argument errors, exit codes, logging and device selection."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ldm.errors import Stopped, UserError, nearest, says_full_disk

if TYPE_CHECKING:
    import torch

_TRUE = {"yes", "true", "t", "y", "1"}
_FALSE = {"no", "false", "f", "n", "0"}
_SETTING = re.compile(r"((model|data|lightning)(?=[.=])|[a-z_]\w*\.)[\w.\[\]-]*=")

#: The largest seed that every random number generator here accepts; numpy's limit is the smallest.
LARGEST_SEED = 2**32 - 1
#: The largest whole number of a command line; that of the 64-bit counters of numpy and torch.
LARGEST_COUNT = 2**63 - 1
#: Seconds between two states of a progress bar in a log file.
LOGGED_BAR_SECONDS = 15
#: What the system refuses because of a path, a permission or a limit: the user can correct it, the program cannot.
REFUSALS = frozenset(
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP"),
        *("EMFILE", "ENFILE", "EIO", "ESTALE", "ENXIO", "ENODEV", "ETXTBSY"),
    )
    if hasattr(errno, name)
)
BROKEN_PIPE = 128 + 13  # the exit code of a command whose reader has gone, such as head


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of flags, except empty ones and booleans."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default == "" or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser with one-line errors that suggests the nearest flag for an unknown one.

    Flags may not be abbreviated, because a misspelt flag could match another one. Hyphens and underscores in a flag are
    alike, because published commands have both. Every error ends the process with exit code 2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    @property
    def flags(self) -> list[str]:
        """All flag spellings this parser knows, such as ``-n`` and ``--name``."""
        return sorted(flag for action in self._actions for flag in action.option_strings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        parsed, rest = super().parse_known_args([*map(self._as_declared, words[:end]), *words[end:]], namespace)
        self._refuse_large(parsed)
        return parsed, rest

    def _refuse_large(self, parsed: argparse.Namespace) -> None:
        """End with an error for a whole number that no counter of a library holds."""
        for action in self._actions:
            found = getattr(parsed, action.dest, None)
            for value in found if isinstance(found, list | tuple) else (found,):
                if isinstance(value, int) and abs(value) > LARGEST_COUNT:
                    name = "/".join(action.option_strings) or action.metavar or action.dest
                    self.error(f"argument {name}: {str(value)[:30]} is too large a number")

    def _as_declared(self, word: str) -> str:
        """An argument with the hyphens and underscores of its flag as this parser declares them."""
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag in self.flags:
            return word
        alike = [known for known in self.flags if known.startswith("--") and _folded(known) == _folded(flag)]
        return f"{alike[0]}{equals}{value}" if alike else word

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self.describe_unknown(rest))
        return parsed

    def describe_unknown(self, rest: Sequence[str]) -> str:
        """One line about unknown arguments, with the nearest known flag for the first unknown one."""
        for argument in rest:
            if argument.startswith("-") and len(argument) > 1:
                flag = argument.split("=", 1)[0]
                return f"unknown flag '{flag}'{nearest(flag, self.flags) or '; --help lists the flags'}"
        if _SETTING.match(rest[0]):
            return f"'{rest[0]}' is a setting of a YAML file, and {self.prog} reads none"
        return f"unexpected argument '{rest[0]}'; --help lists what {self.prog} takes"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _folded(flag: str) -> str:
    return flag[2:].replace("-", "_")


def str2bool(value: str | bool) -> bool:
    """Parse a boolean (yes true t y 1, no false f n 0, any case) for use as an argparse ``type``.

    Raises:
        argparse.ArgumentTypeError: for any other word.
    """
    if isinstance(value, bool):
        return value
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"expected yes or no, got '{value}'")


def seed(text: str) -> int:
    """Parse a seed for use as an argparse ``type``: a whole number from 0 to 2**32 - 1, valid for every generator.

    Raises:
        argparse.ArgumentTypeError: for any other text.
    """
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {LARGEST_SEED}, got '{text}'")
    return value


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the settings ``key.path=value`` of a command line from its other arguments, keeping their order.

    This happens before flags are parsed, because a setting after ``--base F`` or ``-t`` would be parsed as a value of
    that flag. An argument that names an existing file is not a setting.
    """
    settings: list[str] = []
    rest: list[str] = []
    for word in words:
        (settings if _SETTING.match(word) and not os.path.exists(word) else rest).append(word)
    return settings, rest


def pick_device(name: str | None = None) -> torch.device:
    """The device ``name``; by default a GPU if one is available, else the CPU.

    Raises:
        UserError: for an invalid device name, or a GPU that this machine does not have.
    """
    import torch  # imported here to keep --help fast

    if name is None or name == "auto":
        return torch.device(_own_gpu() if torch.cuda.is_available() else "cpu")
    if name == "cuda" and torch.cuda.is_available():
        name = _own_gpu()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"'{name}' is no device; type --device cpu, --device cuda or --device cuda:0") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError(f"device '{name}' was asked for but no GPU is visible here; type --device cpu")
        if device.index is not None and device.index >= count:
            raise UserError(f"device '{name}' does not exist, there are {count} GPUs; type --device cuda:{count - 1}")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device '{name}' was asked for but is not available here; type --device cpu")
    elif device.type not in ("cpu", "mps"):
        try:
            torch.ones(1, device=device).item()  # meta has no values, and torch may be built without xpu, xla, ...
        except Exception:
            raise UserError(f"device '{name}' does not compute here; type --device cpu or --device cuda") from None
    return device


def _own_gpu() -> str:
    """The GPU of this process: under torchrun each has its own, else the current one."""
    import torch

    local, count = os.environ.get("LOCAL_RANK", ""), torch.cuda.device_count()
    return f"cuda:{int(local) % count}" if local.isdecimal() and count > 1 else "cuda"


def typed(path: object) -> str:
    """A path as it is typed in a shell: in quotes where it has spaces or other characters of the shell."""
    return shlex.quote(str(path))


def print_end(written: object, *following: str) -> None:
    """Print the end of a command: what it has written, then what to type next, one line each."""
    print(f"written to {written}")
    for number, line in enumerate(following):
        print(f"{'      ' if number else 'next: '}{line}")


def print_part_end(written: object) -> None:
    """Print the end of one of several processes that write parts of a file."""
    print_end(f"parts of {written}", "wait for the other parts; the process that finishes last merges all of them")


def run(main: Callable[[], None]) -> None:
    """Run a command, log to standard error, and report a :class:`UserError` as ``error: ...`` with exit code 2.

    So do what the system refuses (`REFUSALS`), a full disk and too little memory: exit code 1 is the verdict of a
    command that checks something. Other exceptions keep their traceback, because they are bugs. A command ended by a
    signal exits with 128 plus the signal number, Ctrl-C with 130; SIGTERM removes unfinished files as Ctrl-C does. In a
    log file, where every state of a progress bar is new text, bars show a state every `LOGGED_BAR_SECONDS`.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", str(LOGGED_BAR_SECONDS))  # tqdm reads it when it is imported, later
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text, and a terminal not UTF-8
    try:
        with _ended_by_signal():
            main()
            sys.stdout.flush()
    except UserError as error:
        _end(f"error: {error}", 2)
    except Stopped as stopped:
        _end(str(stopped), 128 + stopped.signal)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it writes the rest
        sys.exit(BROKEN_PIPE)
    except Exception as error:
        if is_full_disk(error):
            _end(f"error: {full_disk_line(error)}", 2)
        if is_out_of_memory(error):
            _end(f"error: {out_of_memory_line(error)}", 2)
        if isinstance(error, OSError) and error.errno in REFUSALS and error.filename is not None:
            advice = "name another one, or change its permissions"
            _end(f"error: {error.filename!r}: {error.strerror}; {advice}", 2)
        raise


def _end(line: str, code: int) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    sys.exit(code)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM into `Stopped`, so that temporary files are removed on the way out; a training has its own rule."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() != owner:  # a process that was forked off ends as it would without this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped(number, "stopped by SIGTERM")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception means a full disk: no space left, quota exceeded, or file size limit exceeded."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return says_full_disk(error)


def full_disk_line(error: BaseException) -> str:
    """One-line message about a write that failed on a full disk."""
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or "a file could not be written whole"
    return f"{reason}{f': {name!r}' if name else ''}; free some space (is the disk or the quota full?), then go on"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory, of the machine or of a GPU, was not enough."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without its import
        return True
    if isinstance(error, OSError):  # the system's, or that of a decoder of Pillow, which has no number
        return error.errno == errno.ENOMEM or (error.errno is None and str(error).startswith("out of memory"))
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def out_of_memory_line(error: BaseException) -> str:
    """One-line message about memory that was not enough."""
    first = (str(error) or "none is left").splitlines()[0]
    reason = first.rpartition("Allocator: ")[2]  # without a place in torch's source
    advice = "take fewer images at a time (--batch_size, or max_batch_size of a training), or fewer in all"
    return f"not enough memory ({reason}); {advice}"
