#!/bin/bash
# Starts that ExecCondition= skips count to the start limit, and once it is hit systemctl start does nothing, says
# nothing and exits with 0, also when the condition has come true.
#
# A unit that has been skipped StartLimitBurst= times (5) within StartLimitIntervalSec= (10 s) is not asked again: its
# condition does not run, nor does its main process. It shows no sign of it: the unit stays inactive, with
# Result=exec-condition and not start-limit-hit, and only ConditionResult= turns from no to yes. So a unit that a path
# unit or a script starts whenever something changed can miss the change that it was waiting for. systemd.unit(5) has
# starts with failing conditions not count to the limit, which holds for Condition...= only; systemd.service(5) calls
# ExecCondition= a hybrid of ExecStartPre= and a condition. It takes a unit that something keeps loaded, as the same
# page says of the limit: one that nothing refers to is forgotten after each skip, and then shows Result=success.
#
# Guessed before it was run: skips count, and the sixth start fails as any other that comes too often does, with exit
# code 1, state failed and Result=start-limit-hit; and ConditionResult=yes throughout, since no Condition...= is there
# to fail.
#
# Seen with systemd 252.39-1~deb12u2 (Debian 12) and 257.13-1~deb13u1 (Debian 13), both alike; of six starts and one
# more when there is what the unit waits for, exit code, state and how often the condition was asked:
#   1 to 5:  0 Result=exec-condition ActiveState=inactive ConditionResult=no, asked 1 (to 5)
#   6:       0 Result=exec-condition ActiveState=inactive ConditionResult=yes, asked 5
#   now it is there: 0 Result=exec-condition ActiveState=inactive ConditionResult=yes, asked 5, ran 0
#   with ConditionPathExists= instead: 0, ran 1
#
# Needs root, Linux with control groups of version 2, and Debian: packages come from where this machine's apt gets its
# own. systemd runs as the first process of namespaces of its own, and ends with them.
set -euo pipefail

if [ "${1:-}" = --boot ]; then
    root=$2
    mount --make-rprivate /
    mount --bind "$root" "$root" # a root directory has to be a mount
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for each in null zero full random urandom; do
        : >"$root/dev/$each"
        mount --bind "/dev/$each" "$root/dev/$each"
    done
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=finding \
        chroot "$root" /usr/lib/systemd/systemd --unit=basic.target --show-status=no
fi

folder=$(mktemp -d)
group='' booted=''
end() {
    if [ -n "$booted" ]; then
        kill -KILL "$booted" 2>"$folder/gone" || true
        wait "$booted" 2>"$folder/killed" || true
        booted=''
    fi
    if [ -n "$group" ]; then
        # The kernel empties groups a moment after their processes are gone.
        for _ in $(seq 100); do
            find "$group" -depth -type d -exec rmdir {} + 2>"$folder/rmdir" && break
            sleep 0.1
        done
        group=''
    fi
}
trap 'end; rm -rf "$folder"' EXIT
mkdir -p "$folder/lists/partial"
: >"$folder/none"
mirror=$(apt-get indextargets --format "\$(REPO_URI)" 'Created-By: Packages' 'Component: main' | head -n 1)

install() { # suite, version
    local root=$folder/$1 options
    mkdir -p "$root/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$folder/sources"
    options=(-qq -o "Dir::Etc::SourceList=$folder/sources" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root
        -o "Dir::State::Lists=$folder/lists" -o "Dir::State::status=$folder/none" -o "Dir::Cache=$root")
    apt-get "${options[@]}" update
    apt-get "${options[@]}" --no-install-recommends --download-only install dash coreutils "systemd=$2"
    mkdir -p "$root"/{dev,proc,run,sys} "$root"/usr/{bin,sbin,lib,lib64}
    for merged in bin sbin lib lib64; do ln -s "usr/$merged" "$root/$merged"; done
    for package in "$root"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -C "$root" --keep-directory-symlink -x
    done
}

boot() { # suite
    group=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET)/finding.$$
    mkdir "$group"
    # shellcheck disable=SC2016 # it is for the inner shell
    sh -c 'echo $$ >"$1/cgroup.procs"; exec unshare --mount --pid --fork --kill-child --net --uts --ipc --cgroup \
        bash "$2" --boot "$3"' sh "$group" "$0" "$folder/$1" </dev/null >"$folder/log" 2>&1 &
    booted=$!
    for _ in $(seq 300); do
        [ -d "/proc/$booted" ] || break
        inside systemctl is-active --quiet basic.target 2>"$folder/not-yet" && return
        sleep 0.1
    done
    cat "$folder/log" "$folder/not-yet" >&2
    exit 1
}

inside() {
    local first
    first=$(tr -d ' ' <"/proc/$booted/task/$booted/children") && [ -n "$first" ] || return
    nsenter --target "$first" --all --root --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

try() {
    local run=$folder/$1/etc/systemd/system number
    mkdir -p "$run"
    printf '[Unit]\nAfter=asks.service looks.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n' \
        >"$run/keeps-them-loaded.service"
    printf '%s\n' '[Service]' Type=oneshot 'ExecCondition=sh -c "echo >>/asked; test -e /there"' \
        'ExecStart=sh -c "echo >>/ran"' >"$run/asks.service"
    printf '%s\n' '[Unit]' ConditionPathExists=/there '[Service]' Type=oneshot 'ExecStart=sh -c "echo >>/looked"' \
        >"$run/looks.service"
    inside systemctl daemon-reload
    inside systemctl start keeps-them-loaded
    for number in 1 2 3 4 5 6; do
        inside systemctl start looks
        start "$1" "$number"
    done
    : >"$folder/$1/there"
    start "$1" "now it is there"
    inside systemctl start looks
    echo "ran $(lines "$1/ran"), with ConditionPathExists= instead $(lines "$1/looked")"
}

lines() {
    if [ -e "$folder/$1" ]; then wc -l <"$folder/$1"; else echo 0; fi
}

start() { # suite, what to call it
    local code=0 shown
    inside systemctl start asks || code=$?
    shown=$(inside systemctl show --property=ActiveState,Result,ConditionResult asks | xargs)
    echo "$2: $code $shown, asked $(lines "$1/asked")"
}

cat >"$folder/expected" <<'EXPECTED'
1: 0 Result=exec-condition ActiveState=inactive ConditionResult=no, asked 1
2: 0 Result=exec-condition ActiveState=inactive ConditionResult=no, asked 2
3: 0 Result=exec-condition ActiveState=inactive ConditionResult=no, asked 3
4: 0 Result=exec-condition ActiveState=inactive ConditionResult=no, asked 4
5: 0 Result=exec-condition ActiveState=inactive ConditionResult=no, asked 5
6: 0 Result=exec-condition ActiveState=inactive ConditionResult=yes, asked 5
now it is there: 0 Result=exec-condition ActiveState=inactive ConditionResult=yes, asked 5
ran 0, with ConditionPathExists= instead 1
EXPECTED
while read -r suite version; do
    install "$suite" "$version" </dev/null
    boot "$suite" </dev/null
    echo "systemd $version"
    try "$suite" </dev/null | tee "$folder/found"
    diff "$folder/expected" "$folder/found" || { echo "this has changed" >&2; exit 1; }
    end
done <<'VERSIONS'
bookworm 252.39-1~deb12u2
trixie 257.13-1~deb13u1
VERSIONS
