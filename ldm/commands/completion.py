"""`dp-ldm completion`: the script that completes commands, flags and file names in bash and zsh.

eval "$(dp-ldm completion)"      # in ~/.bashrc; in ~/.zshrc after: autoload -U bashcompinit && bashcompinit
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.cli import ArgumentParser

SCRIPT = """\
_dp_ldm() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [ "${{word#-}}" != "$word" ]; then
        local flags="$(dp-ldm "$command" --help 2>/dev/null | grep -oE -- '--?[a-zA-Z][a-zA-Z0-9_-]*')"
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _dp_ldm dp-ldm"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and print the script."""
    parser = ArgumentParser(
        prog="dp-ldm completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)

    from ldm.commands.table import COMMANDS

    print(SCRIPT.format(commands=" ".join(COMMANDS)))
