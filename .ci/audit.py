"""Known vulnerabilities of pinned packages, by pip-audit, which passes over what the service does not know.

usage: python .ci/audit.py LOCK ...; exit status: 0 none known, 1 some, 2 it could not be found out
"""

from __future__ import annotations

import json
import subprocess
import sys

PIP_AUDIT = [".tools/bin/uv", "tool", "run", "--quiet", "pip-audit==2.10.1"]
OPTIONS = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]


def main(locks: list[str], command: list[str]) -> int:
    """Print one line per vulnerability, and one at the end; returns the exit status."""
    asked = [*command, *OPTIONS, *(part for lock in locks for part in ("--requirement", lock))]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"audit: not done, pip-audit cannot be installed or reach its service ({reason[:200]})")
        return 2
    known = [package for package in packages if "skip_reason" not in package]
    for package in known:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    unknown = f", {len(packages) - len(known)} unknown to the service" if len(known) < len(packages) else ""
    if not known:
        print(f"audit: not done, the advisories cannot be reached from here ({len(packages)} packages)")
        return 2
    vulnerable = [package for package in known if package["vulns"]]
    print(f"audit: {len(vulnerable)} of {len(known)} packages have known vulnerabilities{unknown}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], PIP_AUDIT))
