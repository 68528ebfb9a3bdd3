"""Ways to break the sandbox, for `make mutate-sandbox`: each one must make a test fail.

A mutation replaces text in one file or in several. Where two mechanisms hold the same thing, it takes both away: with
one of them gone nothing is open. What is not here because nothing can show it: bwrap sets no_new_privs as we do, and
clears the environment that we clear; at the reduced level, changing the user takes the capabilities that we drop.

Standard library only: the script runs before anything is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Need = Literal["", "root", "cgroup", "x86_64"]

CONFINEMENT: Final = "test_confinement.py"
ESCAPES: Final = "test_escapes.py"
HOST: Final = "test_host.py"
LAUNCH: Final = "test_launch.py"
LIMITS: Final = "test_limits.py"
NETWORK: Final = "test_network.py"
OBSERVE: Final = "test_observe.py"
PROTECT: Final = "test_protect.py"
REDUCED: Final = (
    "test_reduced.py::test_a_reduced_sandbox_of_this_machine_passes",
    "test_reduced.py::test_the_kernel_is_out_of_reach",
)
SELFTEST: Final = "test_selftest.py"
TRUSTED: Final = "test_trusted.py"
TOOLCHAINS: Final = "test_toolchains.py"
TOOLCHAINS_REDUCED: Final = "test_toolchains_reduced.py"


@dataclass(frozen=True)
class Change:
    """A replacement.

    Attributes:
        file: below src/toka/sandbox.
        old: occurs exactly once.
        new: what stands there instead.
    """

    file: str
    old: str
    new: str = ""


@dataclass(frozen=True)
class Mutation:
    """One way to break the sandbox.

    Attributes:
        name: what is missing then.
        tests: what must notice, files below tests/sandbox or single tests, the likeliest first.
        changes: all at once.
        need: where it can be noticed: as root, with control groups, on one machine; "" = everywhere.
    """

    name: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]
    need: Need = ""


def _one(name: str, tests: tuple[str, ...], file: str, old: str, new: str = "", need: Need = "") -> Mutation:
    return Mutation(name, tests, (Change(file, old, new),), need)


_CALLS: Final = {
    "ptrace": '"ptrace": (101, 117), ',
    "process_vm_readv": '"process_vm_readv": (310, 270), ',
    "kcmp": '"kcmp": (312, 272),',
    "pidfd_getfd": '"pidfd_getfd": (438, 438), ',
    "unshare": '"unshare": (272, 97), ',
    "setns": '"setns": (308, 268), ',
    "open_tree": '"open_tree": (428, 428), ',
    "name_to_handle_at": '"name_to_handle_at": (303, 264), ',
    "perf_event_open": '"perf_event_open": (298, 241), ',
    "userfaultfd": '"userfaultfd": (323, 282), ',
    "keyctl": '"keyctl": (250, 219),',
    "clone3": '"clone3": (435, 435), ',
    "io_uring": '"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),',
}
"""Calls that succeed, or fail otherwise, for an ordinary user without the filter."""

_FILTER: Final = (
    *(_one(f"{name} is not filtered", (ESCAPES,), "seccomp.py", old) for name, old in _CALLS.items()),
    _one(
        "clone makes namespaces",
        (ESCAPES,),
        "seccomp.py",
        "(_JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES), _refuse(errno.EPERM), _accept()]",
        "_accept()]",
    ),
    _one("TIOCSTI is let through", (ESCAPES,), "seccomp.py", "*_refuse_if(TIOCSTI), "),
    _one(
        "TIOCSTI with high bits is let through",
        (f"{ESCAPES}::test_a_terminal_cannot_be_typed_into",),
        "seccomp.py",
        'cases["ioctl"] = [_argument(1), ',
        'cases["ioctl"] = [(_LOAD, 0, 0, 28), (_JUMP_EQUAL, 1, 0, 0), _accept(), _argument(1), ',
    ),
    _one("TIOCLINUX is let through", (ESCAPES,), "seccomp.py", "*_refuse_if(TIOCLINUX), "),
    _one(
        "any personality",
        (ESCAPES,),
        "seccomp.py",
        "*_accept_if(0xFFFFFFFF), _refuse(errno.EPERM)]",
        "*_accept_if(0xFFFFFFFF), _accept()]",
    ),
    _one("files can run as their owner", (ESCAPES,), "seccomp.py", "SET_IDS), _refuse(errno.EPERM)]", "0), _accept()]"),
    _one("openat2 is there", (ESCAPES,), "seccomp.py", '"openat2": (437, 437),'),
    _one("git's settings may lead anywhere", (ESCAPES,), "protect.py", "obeyed=_obeyed(root, policy)", "obeyed={}"),
    _one("linked worktrees are open", (ESCAPES,), "trusted.py", ', ".git/worktrees": "folder"'),
    _one("commondir is open", (ESCAPES,), "trusted.py", '".git/commondir": "file", '),
    _one(
        "replaced files are not looked for",
        (ESCAPES,),
        "mounts.py",
        "            if opened.rule.access != ",
        "            if not opened.rule.access != ",
    ),
    _one("devices can be made", (ESCAPES,), "seccomp.py", "*_refuse_if(CHARACTER_DEVICE), *_refuse_if(BLOCK_DEVICE)"),
    _one(
        "every family of sockets",
        (ESCAPES,),
        "seccomp.py",
        "    return [*body, _refuse(errno.EAFNOSUPPORT)]",
        "    return [*body, _accept()]",
    ),
    *(
        _one(
            f"sockets of {name}",
            (f"{ESCAPES}::test_only_stream_sockets_of_the_internet_can_be_made_and_only_with_network",),
            "seccomp.py",
            "    return [*body, _refuse(errno.EAFNOSUPPORT)]",
            f"    return [_argument(0), *_accept_if({number}), *body, _refuse(errno.EAFNOSUPPORT)]",
        )
        for name, number in (("AF_NETLINK", 16), ("AF_PACKET", 17), ("AF_VSOCK", 40))
    ),
    _one(
        "every kind of socket of a granted family",
        (NETWORK,),
        "seccomp.py",
        "(_AND, 0, 0, 0xF), (_JUMP_EQUAL, 1, 0, socket.SOCK_STREAM)]\n    body",
        "(_AND, 0, 0, 0xF), (_JUMP_EQUAL, 1, 1, socket.SOCK_STREAM)]\n    body",
    ),
    _one(
        "every protocol of streams",
        (f"{NETWORK}::test_no_other_protocol_goes_around_the_port_rule",),
        "seccomp.py",
        "(_JUMP_EQUAL, 2, 0, 0), (_JUMP_EQUAL, 1, 0, socket.IPPROTO_TCP)]",
        "(_JUMP_EQUAL, 2, 2, 0), (_JUMP_EQUAL, 1, 0, socket.IPPROTO_TCP)]",
    ),
    _one(
        "pairs of datagram sockets",
        (ESCAPES,),
        "seccomp.py",
        "*_accept_if(socket.SOCK_STREAM), *_accept_if(socket.SOCK_SEQPACKET),",
        "_accept(),",
    ),
    _one(
        "files in memory for agents with a list of programs",
        (ESCAPES,),
        "seccomp.py",
        '        cases["memfd_create"] = [_refuse(errno.EPERM)]\n',
        "        pass\n",
    ),
    _one(
        "the file worker may start programs",
        ("test_seccomp.py",),
        "seccomp.py",
        'for name in ("execve", "execveat", "fork", "vfork")}',
        "for name in ()}",
    ),
    _one(
        "calls of another architecture",
        (ESCAPES,),
        "seccomp.py",
        "(_JUMP_EQUAL, 1, 0, AUDIT[machine])",
        "(_JUMP_EQUAL, 1, 1, AUDIT[machine])",
        "x86_64",
    ),
    _one(
        "x32 calls",
        (ESCAPES,),
        "seccomp.py",
        "(_JUMP_GREATER_EQUAL, 0, 1, X32_BIT)",
        "(_JUMP_GREATER_EQUAL, 1, 1, X32_BIT)",
        "x86_64",
    ),
)

_LOCKS: Final = (
    _one("no filter", (ESCAPES,), "roles.py", '    seccomp(bytes.fromhex(profile["seccomp"]))\n'),
    _one("no Landlock", (SELFTEST, NETWORK), "roles.py", '    landlock(profile["landlock"])\n'),
    _one(
        "capabilities are kept",
        (CONFINEMENT, SELFTEST),
        "kernel.py",
        "    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)\n",
        "    return\n",
    ),
    _one("the bounding set is kept", (SELFTEST, CONFINEMENT), "zygote.py", "    empty_bounding_set()\n"),
    Mutation(
        "descriptors are handed on",
        (CONFINEMENT,),
        (
            Change("zygote.py", "            os.close(fd)  # bwrap hands on", "            pass  # bwrap hands on"),
            Change("groundwork.py", "    close_from(4 if further < 0 else 5)\n"),
            Change("roles.py", "            os.close(fd)  # the host is to", "            pass  # the host is to"),
        ),
    ),
    _one(
        "the zygote is open to others",
        (ESCAPES,),
        "zygote.py",
        "    prctl(PR_SET_DUMPABLE, 0)  # nobody",
        "    # nobody",
    ),
    _one(
        "processes of others are seen",
        (SELFTEST, CONFINEMENT),
        "roles.py",
        '    mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)\n',
    ),
    Mutation(
        "/proc can be written",
        (ESCAPES,),
        (
            Change("roles.py", '"/proc", "proc", MS_RDONLY | MS_NOSUID', '"/proc", "proc", MS_NOSUID'),
            Change("landlock.py", '("/etc", "/proc", *folders), READ)', '("/etc", *folders), READ) | {"/proc": WRITE}'),
        ),
    ),
    Mutation(
        "no processes of its own for a command",
        (ESCAPES,),
        (
            Change("zygote.py", "= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC", "= CLONE_NEWNS | CLONE_NEWIPC"),
            Change("roles.py", '    mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)\n'),
        ),
    ),
    _one(
        "System V memory is shared among commands",
        (ESCAPES,),
        "zygote.py",
        "= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC",
        "= CLONE_NEWPID | CLONE_NEWNS",
    ),
    _one("the file worker's root is the sandbox's", (CONFINEMENT,), "roles.py", "    os.chroot(JAIL)\n"),
    _one(
        "the file worker is not locked up",
        (ESCAPES,),
        "roles.py",
        '    lock(request["profile"])\n    serve(connection)',
        "    serve(connection)",
    ),
    _one(
        "the file worker keeps its capabilities",
        (ESCAPES, "test_worker.py"),
        "roles.py",
        "    os.chdir(WORKSPACE)\n    drop_capabilities()\n",
        "    os.chdir(WORKSPACE)\n",
    ),
    _one(
        "root stays root",
        (f"{SELFTEST}::test_a_sandbox_of_this_machine_passes",),
        "spawn.py",
        "    uid, gid = user if os.geteuid() == 0 else (None, None)",
        "    uid, gid = None, None",
        "root",
    ),
    _one(
        "the workspace's owner is not mapped",
        (CONFINEMENT,),
        "idmap.py",
        'call(SYS_MOUNT_SETATTR, "mount_setattr", tree, _EMPTY, flags, ctypes.c_char_p(attributes), len(attributes))',
        "pass",
        "root",
    ),
    _one(
        "reduced: no_new_privs is not set",
        REDUCED,
        "reduced_child.py",
        "    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)\n",
    ),
    _one(
        "reduced: no Landlock",
        REDUCED,
        "reduced_child.py",
        '    kernel.call(kernel.SYS_LANDLOCK_RESTRICT, "landlock", profile["rules"], 0)\n',
    ),
    Mutation(
        "reduced: no filter",
        REDUCED,
        (
            Change("reduced_child.py", "        kernel.seccomp(second)\n", "        pass\n"),
            Change("reduced_child.py", "    kernel.seccomp(first)\n"),
        ),
    ),
    _one(
        "the self-test is content with everything", (SELFTEST,), "selftest.py", "    if problems:\n", "    if False:\n"
    ),
)

_MOUNTS: Final = (
    _one(
        "writable places take programs",
        (ESCAPES,),
        "roles.py",
        "        add_mount_flags(target, MS_NOEXEC)\n",
        "        pass\n",
    ),
    _one(
        "an agent's command gets what waits for a person's",
        ("test_spare.py",),
        "zygote.py",
        'spare.kind == request["profile"] and ',
    ),
    _one("what waits is not locked up", ("test_spare.py",), "roles.py", "        lock(profile)\n"),
    _one(
        "all programs are seen",
        (ESCAPES,),
        "roles.py",
        '        mount(PROGRAMS, "/usr/bin", None, MS_BIND | MS_REC)\n',
    ),
    _one(
        "folders with other programs are seen",
        (ESCAPES,),
        "roles.py",
        "                mount(NOTHING, folder, None, MS_BIND)\n",
        "                pass\n",
    ),
    _one(
        "agents run what people may",
        (ESCAPES,),
        "profile.py",
        "_commands(policy, granted, policy.programs)",
        "_commands(policy, granted, None)",
    ),
    _one(
        "protected paths are not mounted",
        (PROTECT,),
        "protect.py",
        '        rules[path] = PathRule(path, "read")\n',
        "        pass\n",
    ),
    _one(
        "folders above protected paths can be replaced",
        (PROTECT, ESCAPES),
        "protect.py",
        '        for folder in _between(base, path):\n            rules.setdefault(folder, PathRule(folder, "write"))\n'
        "        rules[path]",
        "        rules[path]",
    ),
    _one(
        "what is missing is not protected",
        (PROTECT, ESCAPES),
        "protect.py",
        "                _ensure(root, path, kind, stack)\n",
        "                if not _exists(root, path):\n                    continue\n",
    ),
    _one("git hooks are not protected", (PROTECT,), "trusted.py", '".git/hooks": "folder", '),
    _one("git settings are not protected", (PROTECT,), "trusted.py", '".git/config": "file",'),
    _one("settings of a shell are not protected", (ESCAPES,), "trusted.py", '".envrc": "file", '),
    _one(
        "a spec opens a protected path that it was not granted",
        (TRUSTED,),
        "policy.py",
        "for p in place.named if writable.covers(Capability(FILESYSTEM_WRITE, paths=(p,)))",
        "for p in place.named",
    ),
    _one("a spec opens toka.toml", (TRUSTED,), "trusted.py", "in TRUSTED and path not in ALWAYS", "in TRUSTED"),
    _one("calls are not told of protection", (TRUSTED,), "trusted.py", "if at is None or (", "if at or ("),
    Mutation(
        "a link at a protected path is followed",
        (PROTECT,),
        (
            Change("protect.py", "    if stat.S_ISLNK(mode):\n", "    if False:\n"),
            Change("protect.py", "    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):", "    if False:"),
        ),
    ),
    _one(
        "a socket at a protected path is left",
        (f"{ESCAPES}::test_a_socket_at_a_protected_path_is_refused",),
        "protect.py",
        "    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):",
        "    if False:",
    ),
    _one(
        "a link at a granted path is followed",
        (CONFINEMENT, "test_mounts.py"),
        "mounts.py",
        "        try:\n            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)",
        "        try:\n            fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=at)",
    ),
    _one(
        "a link above a granted path is followed",
        (ESCAPES, "test_mounts.py"),
        "mounts.py",
        "    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY",
        "    return os.open(name, os.O_PATH | os.O_DIRECTORY",
    ),
    _one("mounts are not checked", (LAUNCH,), "zygote.py", '    check_mounts(config["mounts"])\n'),
    Mutation(
        "readable paths can be written",
        (CONFINEMENT,),
        (
            Change("mounts.py", '"--bind" if opened.rule.access == "write" else "--ro-bind"', '"--bind"'),
            Change("zygote.py", '    check_mounts(config["mounts"])\n'),
            Change("profile.py", '(WRITE if o.rule.access == "write" else READ) | more', "WRITE | more"),
        ),
    ),
    _one(
        "hidden folders are shown",
        (PROTECT,),
        "protect.py",
        'rules[path] = PathRule(path, "hide")',
        'rules[path] = PathRule(path, "read")',
    ),
    _one(
        "daemons can be connected to",
        (ESCAPES,),
        "seccomp.py",
        "    return [*body, _refuse(errno.EAFNOSUPPORT)]",
        "    return [*body, *_accept_if(1), _refuse(errno.EAFNOSUPPORT)]",
    ),
)

_BOUNDS: Final = (
    _one("RLIMIT_NPROC is not set", (LIMITS,), "request.py", '"NPROC": processes, '),
    Mutation(
        "nothing bounds processes",
        (f"{LIMITS}::test_commands_share_the_limit_of_processes",),
        (
            Change("request.py", '"NPROC": processes, '),
            Change("keeper.py", "self._policy.processes + OWN_PROCESSES", "None"),
        ),
    ),
    _one(
        "RLIMIT_FSIZE is not set",
        (f"{LIMITS}::test_no_way_makes_a_file_larger_than_allowed",),
        "request.py",
        '"FSIZE": policy.file_bytes, ',
    ),
    _one(
        "RLIMIT_DATA is not set",
        (f"{LIMITS}::test_no_limit_can_be_raised_from_inside",),
        "request.py",
        '        limits["DATA"] = policy.memory_bytes\n',
        "        pass\n",
    ),
    _one(
        "RLIMIT_CPU is not set",
        (f"{LIMITS}::test_a_limit_of_processor_time_without_cgroups_is_held_as_is_said",),
        "request.py",
        '    limits["CPU"] = max(',
        '    limits["RTTIME"] = 10**9 * max(',
    ),
    _one(
        "/tmp has no size",
        (f"{LIMITS}::test_files_in_memory_fill_their_place_and_no_more",),
        "mounts.py",
        '"--size", str(policy.tmp_bytes), ',
    ),
    _one(
        "no deadline inside",
        (f"{HOST}::test_a_deadline_kills_the_whole_stubborn_tree",),
        "zygote.py",
        '                child.kill("timeout")\n',
        "                pass\n",
    ),
    _one(
        "no deadline outside",
        (f"{HOST}::test_a_frozen_zygote_cannot_hold_a_deadline_up",),
        "execution.py",
        'self.watch.timeout(request["timeout"] + GRACE_S)',
        'self.watch.timeout(request["timeout"] + 600)',
    ),
    _one(
        "a deadline goes on while the sandbox is held",
        ("test_freeze.py::test_a_deadline_stands_still_and_has_its_rest_afterwards",),
        "zygote.py",
        "            child.deadline += max(0.0, until - max(since, child.started))\n",
        "            pass\n",
    ),
    _one(
        "a tree counts as still at the first look",
        ("test_freeze.py::test_a_child_that_a_list_leaves_out_is_held_all_the_same",),
        "standstill.py",
        "if not running and now == before else 1",
        "if not running else 3",
    ),
    _one(
        "what runs is stopped after a look at everything",
        ("test_freeze.py::test_nothing_that_forks_all_the_time_escapes",),
        "standstill.py",
        "running = chase.once()",
        "running = list[int]()",
    ),
    _one(
        "who waits for a held child counts as running",
        ("test_freeze.py::test_who_waits_in_the_kernel_for_a_child_that_is_held_stands_still",),
        "standstill.py",
        ' and (stat.state != "D" or pid not in self.held)',
    ),
    _one(
        "who has no first thread any more counts as ended",
        ("test_freeze.py::test_a_process_whose_first_thread_has_ended_runs_and_is_held_and_killed",),
        "usage.py",
        'self.state in "ZX" and self.threads == 1',
        'self.state in "ZX"',
    ),
    _one(
        "of many children a page is read",
        ("test_usage.py::test_more_children_than_fit_on_a_page_of_proc_are_all_seen",),
        "usage.py",
        "while parts[-1]:",
        "while len(parts[-1]) == 16384:",
    ),
    _one(
        "a command is not asked to end before it is killed",
        ("test_freeze.py::test_a_cancelled_command_is_asked_to_end_first",),
        "execution.py",
        "            lifeline.signal(signal.SIGTERM)\n",
    ),
    _one(
        "the orphans of a dead runtime are left",
        ("test_orphans.py::test_nothing_of_a_killed_runtime_lives_after_the_next_start",),
        "orphans.py",
        "    return end(root, started)",
        "    return True",
    ),
    _one("a flood goes on", (f"{HOST}::test_a_flood_is_killed",), "command.py", "            self._lifeline.cut()\n"),
    _one("the control group is not entered", (LIMITS,), "keeper.py", "        self._cgroup.add(pid)\n", need="cgroup"),
    _one(
        "the control group has no bound on memory",
        (LIMITS,),
        "keeper.py",
        "                self._policy.memory_bytes, self._policy.cpu_cores,",
        "                None, self._policy.cpu_cores,",
        "cgroup",
    ),
    _one(
        "the control group has no bound on processors",
        (f"{LIMITS}::test_a_spinning_command_gets_its_share_and_dies_at_its_deadline",),
        "keeper.py",
        "                self._policy.memory_bytes, self._policy.cpu_cores,",
        "                self._policy.memory_bytes, None,",
        "cgroup",
    ),
    _one(
        "a kill for memory is not told",
        (LIMITS,),
        "keeper.py",
        '        return Exceeded("memory", limit, max(limit, now.memory_peak_bytes or 0))',
        "        return None",
        "cgroup",
    ),
    _one(
        "a process that was refused is not told",
        (f"{LIMITS}::test_the_limit_of_processes_is_told_and_kills_nobody",),
        "keeper.py",
        "        return self._crowd(self._policy.processes)",
        "        return over",
        "cgroup",
    ),
    _one(
        "what a killed command wrote is forgotten",
        (f"{LIMITS}::test_what_a_killed_command_wrote_is_told_and_counts",),
        "measure.py",
        "lifeline.before_cut = keeper.look",
        "pass",
        "root",
    ),
    _one(
        "the control group stays",
        (f"{LIMITS}::test_all_processes_are_in_the_group_and_it_goes_with_the_sandbox",),
        "keeper.py",
        "await asyncio.to_thread(self._cgroup.end)",
        "pass",
        "cgroup",
    ),
    _one(
        "nobody watches memory",
        (f"{LIMITS}::test_shared_memory_of_one_process_counts",),
        "keeper.py",
        '                kill(Exceeded("memory", memory, seen.memory_bytes or 0))\n',
        "                pass\n",
    ),
    _one(
        "nobody watches the disk",
        (f"{LIMITS}::test_writing_without_end_is_stopped",),
        "keeper.py",
        '                kill(Exceeded("disk", disk, written))\n',
        "                pass\n",
        "root",
    ),
    _one(
        "every limit is called strict",
        (f"{LIMITS}::test_what_holds_each_limit_is_said",),
        "enforcement.py",
        'WITHOUT["memory"], by is not None',
        'WITHOUT["memory"], True',
    ),
)

_LOOPBACK: Final = (
    f"{NETWORK}::test_there_is_no_other_interface_route_or_name_service",
    f"{CONFINEMENT}::test_there_is_no_network",
)
"""Tests that send nothing, for a sandbox in the machine's own network."""

_WAYS_OUT: Final = (
    _one("the network is the machine's", _LOOPBACK, "mounts.py", '"--unshare-net", '),
    _one(
        "every host is allowed",
        (NETWORK,),
        "egress_link.py",
        "        if not verdict.allowed:\n",
        "        if False:\n",
    ),
    _one(
        "any text is a host",
        ("test_egress_rules.py",),
        "egress_rules.py",
        '"." in host and "*" not in host and HOST.fullmatch(host) and not NUMERIC.fullmatch(host) else None',
        "True else None",
    ),
    _one(
        "addresses are hosts",
        ("test_egress_rules.py",),
        "egress_rules.py",
        " and not NUMERIC.fullmatch(host) else None",
        " else None",
    ),
    _one(
        "every address is public",
        ("test_egress_rules.py",),
        "egress_rules.py",
        "    if isinstance(address, IPv4Address):\n        return address",
        "    return True\n    if isinstance(address, IPv4Address):\n        return address",
    ),
    _one(
        "a name may lead to this machine",
        (f"{NETWORK}::test_a_granted_name_that_leads_inwards_is_refused[api.example.org]",),
        "egress_dial.py",
        "        if not all(map(self._permitted, addresses)):\n",
        "        if False:\n",
    ),
    _one(
        "every port can be bound",
        (NETWORK,),
        "landlock.py",
        "_CONNECT_TCP | (0 if self.bind else _BIND_TCP)",
        "_CONNECT_TCP",
    ),
    Mutation(
        "every port can be connected to",
        (NETWORK,),
        (
            Change("landlock.py", "_CONNECT_TCP | (0 if self.bind else _BIND_TCP)", "_BIND_TCP"),
            Change("landlock.py", "list(self.connect_ports) if network else []", "[]"),
        ),
    ),
    _one(
        "attempts are not reported",
        (NETWORK,),
        "egress_link.py",
        "                self._terms.report(self._attempt())\n",
        "                pass\n",
    ),
    _one(
        "the proxy counts nothing", (NETWORK,), "egress_meter.py", "            self.up += size\n", "            pass\n"
    ),
)

_TOOLCHAINS: Final = (
    _one("toolchains can be written", (TOOLCHAINS,), "toolchain.py", '("--ro-bind", source, toolchain.path)',
         '("--bind", source, toolchain.path)'),
    _one("folders above a toolchain can be listed", (TOOLCHAINS,), "toolchain.py", '"0111"', '"0755"'),
    Mutation("a toolchain is reached through links", (TOOLCHAINS,), (
        Change("toolchain.py", "    if real != path:\n", "    if False:\n"),
        Change("toolchain.py", "os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY", "os.O_PATH | os.O_DIRECTORY"),
    )),
    _one("a toolchain may lie in the workspace", (TOOLCHAINS,), "toolchain.py",
         "    if below(path, place) or below(place, path):\n", "    if False:\n"),
    _one("programs behind links out of a toolchain count as its own", (TOOLCHAINS,), "toolchain.py",
         "            if real.startswith(SHOWN) or any(below(real, other) for other in toolchains):\n",
         "            if True:\n"),
    _one("toolchains that no listed program needs are shown", (TOOLCHAINS,), "profile.py", "(*HIDDEN, *others)",
         "HIDDEN"),
    Mutation("a list of programs opens every toolchain", (TOOLCHAINS,), (
        Change("profile.py", "policy.toolchains if programs is None else needed_by(programs, policy.toolchains)",
               "policy.toolchains"),
    )),
    _one("programs that are refused start from toolchains", (TOOLCHAINS,), "profile.py",
         "(*SEARCHED.split(\":\"), *bin_folders(policy.toolchains))", "SEARCHED.split(\":\")"),
    _one("git is looked for in toolchains", (TOOLCHAINS,), "profile.py",
         "    rules = system_rules(folders=_system_folders(), execute=[*execute, *LOADERS], programs_only=True)\n",
         "    rules = system_rules(folders=_system_folders(), execute=[*execute, *LOADERS, *policy.toolchains],"
         " programs_only=True)\n"),
    _one("reduced: a list of programs opens every toolchain", (TOOLCHAINS_REDUCED,), "level.py",
         "_beside(needed_by(named, toolchains), ", "_beside(toolchains, "),
    _one("reduced: programs that are refused start from toolchains", (TOOLCHAINS_REDUCED,), "level.py",
         "(*SEARCHED.split(\":\"), *bin_folders(toolchains))", "SEARCHED.split(\":\")"),
    _one("reduced: toolchains can be written", (TOOLCHAINS_REDUCED,), "level.py",
         "_beside([*folders, *toolchains], _files_of(refused, toolchains), READ | EXECUTE)",
         "_beside(folders, _files_of(refused, toolchains), READ | EXECUTE) | dict.fromkeys(toolchains, 0x7FFF)"),
)  # fmt: skip

_WATCH: Final = (
    _one(
        "a watched command goes on with what is forbidden",
        (OBSERVE,),
        "watched.py",
        "        return said & 0xFFFF or errno.EPERM if said & ~0xFFFF == _ERRNO else errno.EPERM",
        "        return 0",
    ),
    _one(
        "a watched command goes on with any call that the filter lets through",
        (OBSERVE,),
        "watched.py",
        "return 0 if number in self._may else errno.EPERM",
        "return 0",
    ),
    _one(
        "what depends on arguments goes on whatever they are",
        (OBSERVE,),
        "watched.py",
        "        except struct.error:  # it looks at them\n            return False",
        "        except struct.error:  # it looks at them\n            return True",
    ),
    _one(
        "refusals of a watched command have another error",
        (OBSERVE,),
        "watched.py",
        "return _ANSWER.pack(identifier, 0, -error, ",
        "return _ANSWER.pack(identifier, 0, -min(error, 1), ",
    ),
    _one(
        "a watched command is not locked into paths",
        (OBSERVE,),
        "listener.py",
        '    landlock(profile["landlock"])\n',
    ),
    _one(
        "without a listener nothing is filtered",
        (OBSERVE,),
        "listener.py",
        '            seccomp(bytes.fromhex(profile["seccomp"]))\n',
    ),
    _one(
        "a watched command keeps the listener",
        (OBSERVE,),
        "listener.py",
        "        os.close(listener)\n",
        "        os.set_inheritable(listener, True)\n",
    ),
    _one(
        "somebody inside may become a listener",
        (OBSERVE,),
        "seccomp.py",
        "(_JUMP_ANY_BIT, 0, 1, NEW_LISTENER), _refuse(errno.EBUSY), _accept()]",
        "_accept()]",
    ),
    _one(
        "a watch that breaks off goes unnoticed",
        (OBSERVE,),
        "observe.py",
        "                self._tell(self._lost)\n",
        "                pass\n",
    ),
)

MUTATIONS: Final = (*_FILTER, *_LOCKS, *_MOUNTS, *_BOUNDS, *_WAYS_OUT, *_TOOLCHAINS, *_WATCH)
