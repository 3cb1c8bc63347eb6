"""Write docs/configuration.md, the page on every key of a configuration, or check that it is up to date.

python scripts/configuration.py --write
python scripts/configuration.py --check
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, print_end, run

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line; write the page, or raise UserError when it is out of date."""
    parser = ArgumentParser(prog="configuration.py", description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the page")
    choice.add_argument("--check", action="store_true", help="exit with 2 when the page is out of date")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "configuration.md", help="the page")
    args = parser.parse_args(argv)

    from ldm.errors import UserError
    from ldm.files import write_text
    from ldm.reports.configuration import configuration_page

    text = configuration_page([ROOT / "configs", ROOT / "dp_lora"])
    if args.write:
        write_text(args.page, text)
        print_end(args.page, f"git diff {args.page}")
    elif not args.page.is_file() or args.page.read_text(encoding="utf-8") != text:
        raise UserError(f"{args.page} is out of date; type python scripts/configuration.py --write")


if __name__ == "__main__":
    run(main)
