#!/bin/bash
# With Debian 12's httpx a request that is not in time ends asyncio.timeout around it in CancelledError, as if the
# task had been cancelled from outside, and no TimeoutError is raised at all. With Debian 12's Python so does every
# later timeout in that task, whatever is in it.
#
# anyio 3.6.2 lets whoever connects wait in a cancel scope, ends that scope by task.cancel() once there is a
# connection, and swallows the CancelledError without task.uncancel(). So each new connection adds one to
# task.cancelling() of the task that asked, for good. By that number asyncio.timeout tells its own cancellation from
# another's: it compares it with what it was when the timeout began, before Python 3.11.3 with zero, and lets the
# CancelledError out where it is higher. Nothing of it is in the documentation of asyncio.timeout, of httpx and of
# anyio's connect_tcp; anyio's history has for 3.7.0 that uncancellation on Python 3.11 is handled.
#
# Guessed before it was run: only a name with several addresses adds to the number, since those are raced, and a
# literal address does not; 3.7 is like 3.6, and 4.0 the first that is not.
#
# Seen with httpx 0.23.3 and httpcore 0.16.3, requests to 127.0.0.1 and Python 3.11.7:
#   anyio 3.6.2: cancelling() after each request: 1 2 3; timeout around a late one: CancelledError; a later timeout:
#                TimeoutError (Python 3.11.2: CancelledError)
#   anyio 3.7.0: cancelling() after each request: 0 0 0; timeout around a late one: TimeoutError; a later timeout:
#                TimeoutError
#
# Needs Python 3.11 or later; no root. Connections go to a server of its own on 127.0.0.1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/ask.py" <<'PYTHON'
import asyncio
from contextlib import suppress

import httpx


async def answer(reader, writer):
    with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"GET /late"):
            await reader.read()
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
    writer.close()


async def get(url):
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(url)


async def count(url):
    numbers = []
    for _ in range(3):
        await get(url)
        numbers.append(str(asyncio.current_task().cancelling()))
    return " ".join(numbers)


async def too_late(url):
    try:
        async with asyncio.timeout(0.5):
            await get(url)
    except (TimeoutError, asyncio.CancelledError) as error:
        return type(error).__name__


async def later(url):
    await get(url)
    try:
        async with asyncio.timeout(0.1):
            await asyncio.Event().wait()
    except (TimeoutError, asyncio.CancelledError) as error:
        return type(error).__name__


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = "http://127.0.0.1:{}/".format(server.sockets[0].getsockname()[1])
    numbers = await asyncio.create_task(count(url))
    around = await asyncio.create_task(too_late(url + "late"))
    afterwards = await asyncio.create_task(later(url))
    timeouts = f"timeout around a late one: {around}; a later timeout: {afterwards}"
    print(f"cancelling() after each request: {numbers}; {timeouts}")


asyncio.run(main())
PYTHON

# What a timeout that begins later ends in with anyio 3.6.2.
later=$(python3 -c 'import sys; print("CancelledError" if sys.version_info < (3, 11, 3) else "TimeoutError")')
python3 --version
while IFS=: read -r version numbers around afterwards; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" -qq install httpx==0.23.3 httpcore==0.16.3 "anyio==$version" h11==0.14.0 sniffio==1.3.0 \
        rfc3986==1.5.0 certifi==2022.9.24 idna==3.3
    found=$("$folder/$version/bin/python" "$folder/ask.py")
    echo "anyio $version: $found"
    expected="after each request: $numbers; timeout around a late one: $around; a later timeout: $afterwards"
    if [ "$found" != "cancelling() $expected" ]; then
        echo "this has changed" >&2
        exit 1
    fi
done <<EXPECTED
3.6.2:1 2 3:CancelledError:$later
3.7.0:0 0 0:TimeoutError:TimeoutError
EXPECTED
