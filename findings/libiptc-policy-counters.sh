#!/bin/bash
# With iptables 1.8.9 a rule added to any chain of a table sets the policy counters of all its built-in chains to
# zero; with 1.8.11 it does not.
#
# libiptc, by which iptables-legacy, iptables-legacy-restore --noflush and python-iptables write, replaces a whole
# table at each commit and then adds up the counters again. It does so for rules: each goes on from where it stood.
# 1.8.9 does not for the policies of built-in chains, whatever was changed, be it a rule in a chain that no packet
# meets. So on Debian 12 a policy's counters (iptables -L -v, the head lines of iptables-save -c) tell how many
# packets came since anyone last changed anything in that table, and go back without a reset; on Debian 13 they go on.
# iptables(8) of both releases names -Z as what zeroes counters.
#
# Guessed before it was run: in both releases the policies' counters are carried over, as those of rules are.
#
# Seen with 1.8.9-2 (Debian 12) and 1.8.11-2 (Debian 13) on Linux 6.18; no rule jumps to the chain that is changed:
#   iptables v1.8.9 (legacy)
#   before: PREROUTING [10:440] OUTPUT [10:440], its rule for UDP [5:150]
#   after:  PREROUTING [0:0] OUTPUT [0:0], its rule for UDP [5:150]
#   iptables v1.8.11 (legacy)
#   before: PREROUTING [10:440] OUTPUT [10:440], its rule for UDP [5:150]
#   after:  PREROUTING [10:440] OUTPUT [10:440], its rule for UDP [5:150]
#
# Needs root, for a network namespace of its own, and Debian: packages come from where this machine's apt gets its
# own.
set -euo pipefail

if [ "${1:-}" = --inside ]; then
    directory=$2 zeroed=$3
    export XTABLES_LIBDIR LD_LIBRARY_PATH XTABLES_LOCKFILE=$directory/lock
    XTABLES_LIBDIR=$(echo "$directory"/usr/lib/*/xtables)
    LD_LIBRARY_PATH=${XTABLES_LIBDIR%/xtables}
    iptables=("$directory/usr/sbin/iptables-legacy" -t raw)
    counters() {
        "$directory/usr/sbin/iptables-legacy-save" -c -t raw | awk '
            $1 == ":PREROUTING" || $1 == ":OUTPUT" { policies = policies " " substr($1, 2) " " $3 }
            / -p udp/ { rule = $1 }
            END { print substr(policies, 2) ", its rule for UDP " rule }'
    }
    "$directory/usr/sbin/iptables-legacy" --version
    ip link set lo up
    "${iptables[@]}" -A PREROUTING -p udp
    "${iptables[@]}" -N APART
    for _ in 1 2 3 4 5; do echo x >/dev/udp/127.0.0.1/9 || true; done
    before=$(counters)
    "${iptables[@]}" -A APART -p tcp
    after=$(counters)
    printf 'before: %s\nafter:  %s\n' "$before" "$after"
    [[ $before =~ ^PREROUTING\ \[[1-9][0-9]*:.*\ OUTPUT\ \[[1-9][0-9]*:.*\ \[5:150\]$ ]]
    if [ "$zeroed" = yes ]; then before="PREROUTING [0:0] OUTPUT [0:0], its rule for UDP [5:150]"; fi
    [ "$after" = "$before" ] && exit
    echo "this has changed" >&2
    exit 1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/lists/partial" "$folder/archives/partial"
mirror=$(apt-get indextargets --format "\$(REPO_URI)" 'Created-By: Packages' 'Component: main' | head -n 1)
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
    "$mirror" bookworm "$mirror" trixie >"$folder/sources"
options=(-qq -o "Dir::Etc::SourceList=$folder/sources" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root
    -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder")
apt-get "${options[@]}" update
while read -r version zeroed; do
    (
        cd "$folder"
        apt-get "${options[@]}" download "iptables=$version" "libip4tc2=$version" "libip6tc2=$version" \
            "libxtables12=$version"
        for package in ./*_"$version"_*.deb; do dpkg -x "$package" "$folder/$version"; done
    )
    unshare --net bash "$0" --inside "$folder/$version" "$zeroed" </dev/null
done <<'VERSIONS'
1.8.9-2 yes
1.8.11-2 no
VERSIONS
