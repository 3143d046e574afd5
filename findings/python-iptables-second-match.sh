#!/bin/bash
# With python-iptables an option that is set on a match after a second match of the same kind was made is lost
# silently, and the rule is committed with the extension's default in its place.
#
# All matches of a kind, in whatever rule, share one structure of libxtables, which points at the data of the one that
# was made last. Extensions whose options are described in a table (limit, comment and most others) are told to write
# to where that structure points. So `first.limit = "1/sec"`, once a second match exists, changes the second, raises
# nothing, and the first keeps what an unset match has, 3/hour. Extensions with a parser of the older form, as set and
# tcp have in iptables 1.8.9, are handed their data: the same lines are right with them. One rule or two makes no
# difference. The readme shows matches that are filled as they are made, and does not say that they have to be.
#
# Guessed before it was run, of two matches set in one rule: the second gets both options, or the commit is refused.
# Neither: with set all is right, and with limit the first value is nowhere.
#
# Seen with python-iptables 1.0.1 (Debian 12 and 13) and 1.2.0, Python 3.11, iptables 1.8.9, Linux 6.18, as
# iptables-legacy-save prints the two rules; both versions alike:
#   limit, filled one after the other: -m limit --limit 1/sec | -m limit --limit 2/sec
#   limit, both made first:            -m limit --limit 3/hour | -m limit --limit 2/sec
#   tcp, both made first:              -p tcp -m tcp --dport 80 | -p tcp -m tcp --dport 90
#
# Needs root, for a network namespace of its own; iptables; and a C compiler with Python's headers, to build the
# package.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/write.py" <<'PYTHON'
import subprocess

import iptc


def written(kind, option, values, made_first):
    table = iptc.Table("raw", autocommit=False)
    table.refresh()
    chain = iptc.Chain(table, "PREROUTING")
    rules, matches = [], []
    for _ in values:
        rule = iptc.Rule()
        if kind == "tcp":
            rule.protocol = "tcp"
        rules.append(rule)
    if made_first:
        matches = [rule.create_match(kind) for rule in rules]
        for match, value in zip(matches, values):
            match.set_parameter(option, value)
    else:
        for rule, value in zip(rules, values):
            rule.create_match(kind).set_parameter(option, value)
    for rule in rules:
        rule.create_target("ACCEPT")
        chain.append_rule(rule)
    table.commit()
    save = subprocess.run(["iptables-legacy-save", "-t", "raw"], capture_output=True, text=True, check=True)
    table.refresh()
    chain.flush()
    table.commit()
    head, tail = "-A PREROUTING ", " -j ACCEPT"
    lines = [line for line in save.stdout.splitlines() if line.startswith(head)]
    return " | ".join(line.removeprefix(head).removesuffix(tail) for line in lines)


print("limit, filled one after the other:", written("limit", "limit", ["1/sec", "2/sec"], False))
print("limit, both made first:           ", written("limit", "limit", ["1/sec", "2/sec"], True))
print("tcp, both made first:             ", written("tcp", "dport", ["80", "90"], True))
PYTHON

cat >"$folder/expected" <<'EXPECTED'
limit, filled one after the other: -m limit --limit 1/sec | -m limit --limit 2/sec
limit, both made first:            -m limit --limit 3/hour | -m limit --limit 2/sec
tcp, both made first:              -p tcp -m tcp --dport 80 | -p tcp -m tcp --dport 90
EXPECTED
for version in 1.0.1 1.2.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" -qq install setuptools==75.8.0 wheel==0.45.1
    "$folder/$version/bin/pip" -qq install --no-build-isolation "python-iptables==$version"
    XTABLES_LOCKFILE=$folder/lock unshare --net "$folder/$version/bin/python" "$folder/write.py" >"$folder/found"
    echo "python-iptables $version"
    cat "$folder/found"
    diff "$folder/expected" "$folder/found" || { echo "this has changed" >&2; exit 1; }
done
