"""A backend in a process of its own, since python-iptables keeps its tables for as long as a process lives.

Reads pickled (name of a method, arguments) from standard input, and answers each with (result, error), of which one is
None. The method `imported` says whether a module was imported by now.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from typing import BinaryIO

from sikkerguard.edges.kernel.select import open_backend
from sikkerguard.errors import KernelError


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Until the requests end."""
    backend = open_backend(dry_run=False)
    while requests.peek(1):  # type: ignore[attr-defined]
        name, arguments = pickle.load(requests)
        answer: tuple[object, KernelError | None]
        try:
            if name == "imported":
                answer = arguments[0] in sys.modules, None
            elif name == "read_traffic":
                # The sources are unpacked from the kernel's answer only when they are gone through.
                answer = [replace(sample, sources=tuple(sample.sources)) for sample in backend.read_traffic()], None
            else:
                answer = getattr(backend, name)(*arguments), None
        except KernelError as error:
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()
    backend.close()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
