"""The table of system calls against the kernel's own headers, and what the compiled filter answers."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

import pytest

from toka.sandbox.seccomp import ABSENT, AUDIT, DENIED, SPECIAL, Syscalls, compile_filter, numbers

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97


def header(machine: str) -> dict[str, int]:
    path = next((Path(p) for p in HEADERS[machine] if Path(p).exists()), None)
    if path is None:
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    pairs = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    return {name: int(number) for name, number in pairs}


@pytest.mark.parametrize("machine", AUDIT)
def test_every_number_is_the_kernels(machine: str) -> None:
    known = header(machine)
    ours = numbers(machine)
    wrong = {name: (number, known[name]) for name, number in ours.items() if name in known and known[name] != number}
    assert not wrong
    newer = set(ours) - set(known)
    assert newer <= {"fchmodat2", "statmount", "listmount", "open_tree_attr", "listns"}, (
        "calls the header does not know"
    )


@pytest.mark.parametrize("machine", AUDIT)
def test_no_call_is_left_out_on_a_machine_that_has_it(machine: str) -> None:
    known = header(machine)
    missing = {name for name in {**DENIED, **ABSENT, **SPECIAL} if name in known} - set(numbers(machine))
    assert not missing


def test_an_unknown_machine_gets_no_filter() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        compile_filter("riscv64", Syscalls())


def answer(program: bytes, machine: str, number: int, *args: int, arch: int | None = None) -> int:
    """What a filter answers to one call, by an interpreter of the few instructions it uses."""
    data = struct.pack("=IIQ6Q", number, AUDIT[machine] if arch is None else arch, 0, *args, *[0] * (6 - len(args)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, value = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x06:
                return value
            case _:
                hit = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                at += yes if hit else no


@pytest.mark.parametrize("machine", AUDIT)
def test_what_the_filter_answers(machine: str) -> None:
    program = compile_filter(machine, Syscalls())
    number = numbers(machine)

    def call(name: str, *args: int) -> int:
        return answer(program, machine, number[name], *args)

    for name in DENIED:
        if name in number:
            assert call(name) == ERRNO | EPERM, name
    for name in ABSENT:
        assert call(name) == ERRNO | ENOSYS, name
    assert call("clone", 0x00010F00) == ALLOW  # a thread
    assert call("clone", 17) == ALLOW  # a process
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
        assert call("clone", 17 | flag) == ERRNO | EPERM
    assert call("ioctl", 1, 0x5412) == call("ioctl", 1, 0x5412 | 1 << 32) == ERRNO | EPERM
    assert call("ioctl", 1, 0x541C | 7 << 40) == ERRNO | EPERM
    assert call("ioctl", 1, 0x5401) == ALLOW
    assert call("mknodat", 0, 0, 0o020666) == call("mknodat", 0, 0, 0o060666) == ERRNO | EPERM
    assert call("mknodat", 0, 0, 0o010666) == ALLOW  # a pipe
    assert call("personality", 0) == call("personality", 0xFFFFFFFF) == ALLOW
    assert call("personality", 0x0040000) == ERRNO | EPERM
    for family in (1, 2, 10, 16, 40):
        assert call("socket", family, socket.SOCK_STREAM) == ERRNO | EAFNOSUPPORT
    assert call("socketpair", 1, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) == ALLOW
    assert call("socketpair", 1, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) == ALLOW
    assert call("socketpair", 1, socket.SOCK_RAW) == ERRNO | EAFNOSUPPORT
    assert call("socketpair", 1, socket.SOCK_DGRAM) == ERRNO | EAFNOSUPPORT
    assert call("socketpair", 2, socket.SOCK_STREAM) == ERRNO | EAFNOSUPPORT
    assert call("execve") == call("memfd_create") == ALLOW
    assert answer(program, machine, 0) == ALLOW


def test_foreign_architectures_end_the_process() -> None:
    program = compile_filter("x86_64", Syscalls())
    assert answer(program, "x86_64", 0, arch=0x40000003) == KILL  # 32-bit programs
    assert answer(program, "x86_64", 0x40000000 | 101) == KILL  # x32
    assert answer(compile_filter("aarch64", Syscalls()), "aarch64", 0, arch=0x40000028) == KILL


@pytest.mark.parametrize("machine", AUDIT)
def test_what_a_policy_opens_and_closes(machine: str) -> None:
    number = numbers(machine)
    network = compile_filter(machine, Syscalls((socket.AF_INET, socket.AF_INET6)))
    assert answer(network, machine, number["socket"], 2, socket.SOCK_STREAM) == ALLOW
    assert answer(network, machine, number["socket"], 10, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) == ALLOW
    assert answer(network, machine, number["socket"], 2, socket.SOCK_DGRAM) == ERRNO | EAFNOSUPPORT
    assert answer(network, machine, number["socket"], 1, socket.SOCK_STREAM) == ERRNO | EAFNOSUPPORT
    alone = compile_filter(machine, Syscalls(memfd=False, spawn=False))
    for name in ("execve", "execveat", "memfd_create"):
        assert answer(alone, machine, number[name]) == ERRNO | EPERM
    assert answer(alone, machine, number["clone"], 17) == ERRNO | EPERM
    assert answer(alone, machine, number["clone"], 0x00010F00) == ALLOW
    assert answer(alone, machine, number["clone"], 0x00010F00 | 0x20000) == ERRNO | EPERM
