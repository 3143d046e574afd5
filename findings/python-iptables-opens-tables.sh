#!/bin/bash
# python-iptables opens all five tables where one was asked for: 1.0.1 as soon as a rule is read, 1.2.0 when a rule
# that jumps to a chain of one's own is built.
#
# To find out what a rule's target is, it asks each table there is whether it has a chain of that name, and to be
# asked, a table is opened. The kernel makes a legacy table when it is first opened, and from then on leads every
# packet of the network namespace through it, nat included, until its module is unloaded. So a program that reads one
# rule of raw leaves filter, nat, mangle and security behind, for iptables-legacy-save to list and for iptables-nft to
# warn of. 1.0.1 does it for a plain DROP too. Neither readme nor docstrings say that another table is touched than
# the one that was named.
#
# Guessed before it was run: reading a jump opens them, reading or building a DROP does not, and both versions are
# alike.
#
# Seen with python-iptables 1.0.1 (Debian 12 and 13) and 1.2.0, Python 3.11, iptables 1.8.9, Linux 6.18; what
# /proc/net/ip_tables_names has:
#   1.0.1: table opened raw; DROP read filter mangle nat raw security; jump read filter mangle nat raw security; jump
#          built filter mangle nat raw security
#   1.2.0: table opened raw; DROP read raw; jump read raw; jump built filter mangle nat raw security
#
# Needs root, for a network namespace of its own; iptables; and a C compiler with Python's headers, to build the
# package.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/look.py" <<'PYTHON'
import subprocess
from pathlib import Path

import iptc

seen = []


def look(when):
    names = Path("/proc/net/ip_tables_names").read_text().split()
    seen.append(f"{when} {' '.join(sorted(names))}")


def targets(chain):
    return [rule.target.name for rule in iptc.Chain(table, chain).rules]


for words in ("-N OURS", "-A OURS -j DROP", "-A PREROUTING -j OURS"):
    subprocess.run(["iptables-legacy", "-t", "raw", *words.split()], check=True)
table = iptc.Table("raw", autocommit=False)
look("table opened")
assert targets("OURS") == ["DROP"]
look("DROP read")
assert targets("PREROUTING") == ["OURS"]
look("jump read")
iptc.Rule().create_target("OURS")
look("jump built")
print("; ".join(seen))
PYTHON

all="filter mangle nat raw security"
declare -A expected=(
    [1.0.1]="table opened raw; DROP read $all; jump read $all; jump built $all"
    [1.2.0]="table opened raw; DROP read raw; jump read raw; jump built $all"
)
for version in 1.0.1 1.2.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" -qq install setuptools==75.8.0 wheel==0.45.1
    "$folder/$version/bin/pip" -qq install --no-build-isolation "python-iptables==$version"
    found=$(XTABLES_LOCKFILE=$folder/lock unshare --net "$folder/$version/bin/python" "$folder/look.py")
    echo "$version: $found"
    if [ "$found" != "${expected[$version]}" ]; then
        echo "this has changed" >&2
        exit 1
    fi
done
