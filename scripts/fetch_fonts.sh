#!/usr/bin/env bash
# Fetch the public fonts of checkpoints/FONTS.md into one folder, for ldm.data.glyphs (fonts: [builtin, FOLDER]).
#
#   bash scripts/fetch_fonts.sh FOLDER
#
# Needs apt-get and dpkg-deb (Debian, Ubuntu; no root, but package lists: apt-get update) and npm. Nothing is
# installed in the system. Fonts of a package that cannot be had are left out, and named at the end.
set -euo pipefail

case "${1:-}" in
  "" | -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; [ -n "${1:-}" ] && exit 0 || exit 2 ;;
esac

table="$(cd "$(dirname "$0")/.." && pwd)/checkpoints/FONTS.md"
mkdir -p "$1"
target="$(cd "$1" && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# Rows of the table: | file | family | package | licence |
rows() { awk -F' *\\| *' '$2 ~ /\.(ttf|otf|woff)$/ {print $2 "\t" $4}' "$table"; }

unpack() { # PACKAGE: into the folder $scratch/x
  rm -rf "$scratch/x" && mkdir "$scratch/x" && cd "$scratch/x"
  case "$1" in
    @*) npm pack --silent "$1" > /dev/null && tar xzf ./*.tgz ;;
    *) apt-get download -qq -o APT::Sandbox::User=root "$1" > /dev/null && dpkg-deb -x ./*.deb . ;;
  esac
}

missing=()
while read -r package; do
  if ! unpack "$package" 2> "$scratch/log"; then
    missing+=("$package")
    continue
  fi
  while read -r file; do
    found="$(find "$scratch/x" -type f -name "$file" | sort | head -n 1)"
    if [ -n "$found" ]; then cp "$found" "$target/$file"; else missing+=("$package:$file"); fi
  done < <(rows | awk -F'\t' -v p="$package" '$2 == p {print $1}')
  echo "$package"
done < <(rows | cut -f2 | sort -u)

echo "written to $target: $(find "$target" -type f | wc -l) fonts"
echo "next: in a YAML file, fonts: [builtin, $target] for a data set of ldm.data.glyphs"
if [ "${#missing[@]}" -gt 0 ]; then
  printf 'not found: %s\n' "${missing[@]}" >&2
  [ "${#missing[@]}" -lt "$(rows | wc -l)" ]
fi
