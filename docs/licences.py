"""Write docs/licences.md from the current environment. `nox -s licences` runs it where wpn-bench has all its extras.

    python docs/licences.py LISTING.json > docs/licences.md

LISTING.json is the output of `pip-licenses --format=json` in the same environment. The dependencies are read here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

PROJECT = "wpn-bench"
EXTRAS = ("tune", "quantise", "mlflow", "wandb")
# Licences with conditions for the distribution of changed copies. The page lists them for review.
COPYLEFT = re.compile(r"GPL|Mozilla|MPL|EPL|CDDL|EUPL|Affero", re.I)
HEAD = """\
# Licences of what is installed with wpn-bench

`nox -s licences` makes this page with `pip-licenses`, from an installation on Linux with Python 3.11 and the versions of
`constraints.txt`. The same session writes a CycloneDX SBOM to `dist/sbom.cdx.json`. wpn-bench itself is Apache-2.0 and contains none
of these packages: pip downloads them, each under its own licence. "Needed by" is wpn-bench itself, or the extra without which the
package is not installed.
"""


def needed(extra: str | None = None) -> set[str]:
    """Return the normalised names of all dependencies of `PROJECT`, without and with an extra, except itself."""
    found: set[tuple[str, str]] = set()  # (name, extra): `fsspec` needs less than `fsspec[http]`
    waiting = [(PROJECT, extra or "")]
    while waiting:
        name, asked = waiting.pop()
        for one in map(Requirement, requires(name) or ()):
            here = {**default_environment(), "extra": asked}
            if (one.marker is not None and not one.marker.evaluate(here)) or not is_here(one.name):
                continue
            more = {(normal(one.name), wanted) for wanted in ("", *one.extras)} - found
            found |= more
            waiting += more
    return {name for name, _ in found} - {normal(PROJECT)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def is_here(name: str) -> bool:
    try:
        metadata(name)
    except PackageNotFoundError:
        return False
    return True


def table(listing: Iterable[dict[str, str]]) -> str:
    """Return the page: packages that wpn-bench or an extra needs, and those with a copyleft licence."""
    plain = needed()
    by_extra = {extra: needed(extra) - plain for extra in EXTRAS}
    lines, copyleft = [], []
    for row in sorted(listing, key=lambda row: normal(row["Name"])):
        name = normal(row["Name"])
        extras = [extra for extra, names in by_extra.items() if name in names]
        if name not in plain and not extras:
            continue
        licence = row["License"].strip().splitlines()[0].replace("|", "/")
        licence = "not declared (see the file in its wheel)" if licence == "UNKNOWN" else licence
        version = row["Version"].partition("+")[0]
        needed_by = f"extra {', '.join(extras)}" if extras else PROJECT
        lines.append(f"| {row['Name']} | {version} | {licence} | {needed_by} |")
        if COPYLEFT.search(licence):
            copyleft.append(f"{row['Name']} ({licence}; {needed_by})")
    return "\n".join(
        [
            HEAD,
            f"Packages: {len(lines)}, {len(lines) - sum('| extra ' in line for line in lines)} of them in an installation without extras."
            f" Licences with conditions for the distribution of modified copies: {'; '.join(copyleft) or 'none'}."
            " See [security-audit.md](security-audit.md#licences).",
            "",
            "| package | version | licence | needed by |",
            "|---|---|---|---|",
            *lines,
        ]
    )


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
