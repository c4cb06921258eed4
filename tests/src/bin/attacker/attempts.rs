// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list. A call that is not meant to work with the arguments it is given here is tried for its number.

use std::ffi::CStr;
use std::ops::RangeInclusive;

use rustix::io::Errno;

use crate::attempt::{Attempt, SecondLine, Target, by_old_gate, raw};

/// Numbers of system calls, as far as they are given out, and some more.
pub(crate) const CALLS: RangeInclusive<libc::c_long> = 0..=600;
/// Calls that the kernel lets through every filter, because it puts them into programs itself (`uretprobe` and `uprobe`): from
/// anywhere else than from there they do nothing.
pub(crate) const UNFILTERED: [libc::c_long; 2] = [335, 336];
/// Requests of devices, legacy groups and containers, and iommufds, and some more.
pub(crate) const REQUESTS: RangeInclusive<u32> = 0x3b64..=0x3b95;
/// A descriptor that the process was started with, and that nobody named.
pub(crate) const UNNAMED: libc::c_long = 30;

const NOWHERE: libc::c_long = libc::AT_FDCWD as libc::c_long;
const NONE: libc::c_long = -1;

fn text(text: &'static CStr) -> libc::c_long {
    text.as_ptr() as libc::c_long
}

fn file(target: &Target) -> libc::c_long {
    target.file.as_ptr() as libc::c_long
}

fn address<T>(value: &T) -> libc::c_long {
    std::ptr::from_ref(value) as libc::c_long
}

fn number(value: impl Into<libc::c_long>) -> libc::c_long {
    value.into()
}

/// Only the filter refuses these.
macro_rules! calls {
    ($group:literal: $($name:literal = $call:ident ( $($argument:expr),* );)*) => {
        vec![$(attempt($group, $name, SecondLine::None, |_| raw(libc::$call, &[$($argument),*]).map(drop))),*]
    };
}

fn attempt(
    group: &'static str,
    name: &'static str,
    second_line: SecondLine,
    make: impl Fn(&Target) -> Result<(), Errno> + Send + Sync + 'static,
) -> Attempt {
    Attempt { group, name, second_line, make: Box::new(make) }
}

/// All of them.
pub(crate) fn all() -> Vec<Attempt> {
    let groups = [
        files(),
        other_files(),
        programs(),
        processes(),
        network(),
        sockets(),
        memory(),
        kernel(),
        privileges(),
        descriptors(),
        terminals_and_requests(),
        other_tables(),
        inherited(),
        allowed(),
    ];
    groups.into_iter().flatten().collect()
}

/// What is outside the root.
fn files() -> Vec<Attempt> {
    use SecondLine::{Refuses, RefusesWhatIsPossible};
    let all = |name, second_line, make: fn(&Target) -> Result<libc::c_long, Errno>| {
        attempt("files", name, second_line, move |target| make(target).map(drop))
    };
    vec![
        all("open a file", RefusesWhatIsPossible, |target| {
            raw(libc::SYS_openat, &[NOWHERE, file(target), 0])
        }),
        all("open /etc/passwd", RefusesWhatIsPossible, |_| {
            raw(libc::SYS_openat, &[NOWHERE, text(c"/etc/passwd"), 0])
        }),
        all("open a file for writing", RefusesWhatIsPossible, |target| {
            raw(libc::SYS_openat, &[NOWHERE, file(target), number(libc::O_RDWR)])
        }),
        all("open /proc/self/mem", RefusesWhatIsPossible, |_| {
            raw(libc::SYS_openat, &[NOWHERE, text(c"/proc/self/mem"), number(libc::O_RDWR)])
        }),
        all("open /dev/iommu", Refuses, |_| {
            raw(libc::SYS_openat, &[NOWHERE, text(c"/dev/iommu"), number(libc::O_RDWR)])
        }),
        all("open a legacy container", Refuses, |_| {
            raw(libc::SYS_openat, &[NOWHERE, text(c"/dev/vfio/vfio"), number(libc::O_RDWR)])
        }),
        all("make a file", Refuses, |_| {
            raw(libc::SYS_openat, &[NOWHERE, text(c"/made"), number(libc::O_CREAT | libc::O_WRONLY), 0o600])
        }),
        all("open by a path without openat", RefusesWhatIsPossible, |target| {
            raw(libc::SYS_open, &[file(target), 0])
        }),
        all("openat2", RefusesWhatIsPossible, |target| {
            raw(libc::SYS_openat2, &[NOWHERE, file(target), address(&[0_u64; 3]), 24])
        }),
        all("truncate", RefusesWhatIsPossible, |target| raw(libc::SYS_truncate, &[file(target), 0])),
        all("chmod", RefusesWhatIsPossible, |target| raw(libc::SYS_chmod, &[file(target), 0o600])),
        all("mkdir", Refuses, |_| raw(libc::SYS_mkdir, &[text(c"/made"), 0o700])),
        all("symlink", Refuses, |_| raw(libc::SYS_symlink, &[text(c"/"), text(c"/made")])),
        all("mknod of memory", Refuses, |_| {
            raw(libc::SYS_mknod, &[text(c"/made"), number(libc::S_IFCHR | 0o600), 0x101])
        }),
        all("chroot", Refuses, |_| raw(libc::SYS_chroot, &[text(c"/")])),
        all("pivot_root", Refuses, |_| raw(libc::SYS_pivot_root, &[text(c"/"), text(c"/")])),
        all("mount", Refuses, |_| raw(libc::SYS_mount, &[text(c"none"), text(c"/"), text(c"tmpfs"), 0, 0])),
        all("umount2", Refuses, |_| raw(libc::SYS_umount2, &[text(c"/"), 2])),
        all("fsopen", Refuses, |_| raw(libc::SYS_fsopen, &[text(c"tmpfs"), 0])),
        all("open_tree", Refuses, |_| raw(libc::SYS_open_tree, &[NOWHERE, text(c"/"), 1])),
    ]
}

/// What runs another program, or reaches another process.
fn programs() -> Vec<Attempt> {
    use SecondLine::RefusesWhatIsPossible;
    let run = |_: &Target| {
        let program = c"/bin/true";
        let arguments = [program.as_ptr(), std::ptr::null()];
        raw(libc::SYS_execve, &[text(program), address(&arguments), 0]).map(drop)
    };
    let signal = |target: &Target| raw(libc::SYS_kill, &[target.process.into(), 0]).map(drop);
    let trace = |target: &Target| {
        raw(libc::SYS_ptrace, &[number(libc::PTRACE_SEIZE), target.process.into()]).map(drop)
    };
    let mut all = calls! { "programs":
        "execveat" = SYS_execveat(NOWHERE, text(c"/bin/true"), 0, 0, 0);
        "fork" = SYS_fork();
        "vfork" = SYS_vfork();
        "clone" = SYS_clone(number(libc::SIGCHLD));
        "clone3" = SYS_clone3(0, 0);
    };
    all.push(attempt("programs", "execve", RefusesWhatIsPossible, run));
    all.push(attempt("processes", "trace a sibling", RefusesWhatIsPossible, trace));
    all.push(attempt("processes", "signal to a sibling", RefusesWhatIsPossible, signal));
    all
}

/// What reaches other machines, or this one by way of the network.
fn network() -> Vec<Attempt> {
    let connect = |target: &Target| {
        let socket = raw(libc::SYS_socket, &[number(libc::AF_INET), number(libc::SOCK_STREAM)])?;
        let [high, low] = target.port.to_be_bytes();
        // The family in the machine's order, the port and the address in the network's.
        let [first, second] = libc::AF_INET.to_ne_bytes().first_chunk().copied().unwrap_or_default();
        let peer: [u8; 16] = [first, second, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        raw(libc::SYS_connect, &[socket, address(&peer), 16]).map(drop)
    };
    vec![attempt("network", "connect", SecondLine::RefusesWhatIsPossible, connect)]
}

/// By numbers of other tables: 5 is open there, and fstat here.
#[cfg(target_arch = "x86_64")]
fn other_tables() -> Vec<Attempt> {
    const X32: libc::c_long = 0x4000_0000;
    let mut all = Vec::new();
    all.push(attempt("other tables", "x32 write", SecondLine::None, |_| {
        raw(X32 | libc::SYS_write, &[2]).map(drop)
    }));
    all.push(attempt("other tables", "x32 openat", SecondLine::None, |_| {
        raw(X32 | libc::SYS_openat, &[]).map(drop)
    }));
    all.push(attempt("other tables", "x32 ioctl", SecondLine::None, |_| raw(X32 | 0x202, &[]).map(drop)));
    all.push(attempt("other tables", "i386 open", SecondLine::None, |_| by_old_gate(5)));
    all.push(attempt("other tables", "i386 getpid", SecondLine::None, |_| by_old_gate(20)));
    all
}

/// What the process was started with and should not have any more.
fn inherited() -> Vec<Attempt> {
    vec![
        attempt("inherited", "write to what nobody named", SecondLine::None, |_| {
            raw(libc::SYS_write, &[UNNAMED, text(c"x"), 1]).map(drop)
        }),
        attempt("inherited", "write somewhere in what nobody named", SecondLine::None, |_| {
            raw(libc::SYS_pwrite64, &[UNNAMED, text(c"x"), 1]).map(drop)
        }),
    ]
}

/// What is not refused: that the others are is no accident.
fn allowed() -> Vec<Attempt> {
    vec![
        attempt("allowed", "write to the log", SecondLine::None, |_| {
            raw(libc::SYS_write, &[2, text(c""), 0]).map(drop)
        }),
        attempt("allowed", "memory", SecondLine::None, |_| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            raw(libc::SYS_mmap, &[0, 4096, protection.into(), flags.into(), NONE]).map(drop)
        }),
        attempt("allowed", "whether a descriptor is open", SecondLine::None, |_| {
            raw(libc::SYS_fcntl, &[2, number(libc::F_GETFD)]).map(drop)
        }),
    ]
}

/// A call of this number, without arguments.
pub(crate) fn call(number: libc::c_long) -> Result<(), Errno> {
    raw(number, &[]).map(drop)
}

/// A request of this number, on what is neither a device nor an iommufd.
pub(crate) fn request(number: u32) -> Result<(), Errno> {
    raw(libc::SYS_ioctl, &[0, number.into()]).map(drop)
}

/// Other ways to files.
fn other_files() -> Vec<Attempt> {
    calls! { "other files":
        "creat" = SYS_creat(text(c"/made"), 0o600);
        "openat relative, for writing" = SYS_openat(0, text(c"x"), number(libc::O_WRONLY));
        "openat relative, to make" = SYS_openat(0, text(c"x"), number(libc::O_CREAT));
        "openat relative, to truncate" = SYS_openat(0, text(c"x"), number(libc::O_TRUNC));
        "openat relative, without a name" = SYS_openat(0, text(c"."), number(libc::O_TMPFILE));
        "unlink" = SYS_unlink(text(c"/made"));
        "unlinkat" = SYS_unlinkat(NOWHERE, text(c"/made"), 0);
        "rename" = SYS_rename(text(c"/a"), text(c"/b"));
        "renameat2" = SYS_renameat2(NOWHERE, text(c"/a"), NOWHERE, text(c"/b"), 0);
        "link" = SYS_link(text(c"/a"), text(c"/b"));
        "rmdir" = SYS_rmdir(text(c"/made"));
        "ftruncate" = SYS_ftruncate(2, 0);
        "fallocate" = SYS_fallocate(2, 0, 0, 1);
        "fchmod" = SYS_fchmod(2, 0o600);
        "chown" = SYS_chown(text(c"/"), 0, 0);
        "chdir" = SYS_chdir(text(c"/"));
        "stat" = SYS_stat(text(c"/"), 0);
        "statx" = SYS_statx(NOWHERE, text(c"/"), 0, 0, 0);
        "access" = SYS_access(text(c"/"), 0);
        "readlink" = SYS_readlink(text(c"/"), 0, 0);
        "setxattr" = SYS_setxattr(text(c"/"), text(c"user.x"), 0, 0, 0);
        "name_to_handle_at" = SYS_name_to_handle_at(NOWHERE, text(c"/"), 0, 0, 0);
        "open_by_handle_at" = SYS_open_by_handle_at(0, 0, 0);
        "move_mount" = SYS_move_mount(0, 0, 0, 0, 0);
        "mount_setattr" = SYS_mount_setattr(NOWHERE, text(c"/"), 0, 0, 0);
        "inotify_init1" = SYS_inotify_init1(0);
        "fanotify_init" = SYS_fanotify_init(0, 0);
        "flock" = SYS_flock(2, 2);
        "sync" = SYS_sync();
    }
}

/// What reaches other processes.
fn processes() -> Vec<Attempt> {
    calls! { "processes":
        "kill" = SYS_kill(0, 0);
        "tgkill" = SYS_tgkill(1, 1, 0);
        "tkill" = SYS_tkill(1, 0);
        "rt_sigqueueinfo" = SYS_rt_sigqueueinfo(1, 0, 0);
        "pidfd_open" = SYS_pidfd_open(1, 0);
        "pidfd_getfd" = SYS_pidfd_getfd(0, 0, 0);
        "pidfd_send_signal" = SYS_pidfd_send_signal(0, 0, 0, 0);
        "process_vm_readv" = SYS_process_vm_readv(1, 0, 0, 0, 0, 0);
        "process_vm_writev" = SYS_process_vm_writev(1, 0, 0, 0, 0, 0);
        "process_madvise" = SYS_process_madvise(0, 0, 0, 0, 0);
        "kcmp" = SYS_kcmp(1, 1, 0, 0, 0);
        "prlimit64" = SYS_prlimit64(1, 0, 0, 0);
        "setpriority" = SYS_setpriority(0, 1, 0);
        "sched_setaffinity" = SYS_sched_setaffinity(1, 0, 0);
        "sched_setscheduler" = SYS_sched_setscheduler(1, 0, 0);
        "ioprio_set" = SYS_ioprio_set(1, 1, 0);
        "migrate_pages" = SYS_migrate_pages(1, 0, 0, 0);
        "move_pages" = SYS_move_pages(1, 0, 0, 0, 0, 0);
        "wait4" = SYS_wait4(-1, 0, 1, 0);
        "setsid" = SYS_setsid();
        "setpgid" = SYS_setpgid(0, 0);
        "getppid" = SYS_getppid();
    }
}

/// Sockets that nobody handed over, and what the server does not do with its own.
fn sockets() -> Vec<Attempt> {
    calls! { "sockets":
        "socket of the internet" = SYS_socket(number(libc::AF_INET), number(libc::SOCK_STREAM));
        "socket of this machine" = SYS_socket(number(libc::AF_UNIX), number(libc::SOCK_STREAM));
        "netlink" = SYS_socket(number(libc::AF_NETLINK), number(libc::SOCK_RAW));
        "packets" = SYS_socket(number(libc::AF_PACKET), number(libc::SOCK_RAW));
        "vsock" = SYS_socket(number(libc::AF_VSOCK), number(libc::SOCK_STREAM));
        "crypto" = SYS_socket(38, number(libc::SOCK_SEQPACKET));
        "socketpair" = SYS_socketpair(number(libc::AF_UNIX), number(libc::SOCK_STREAM));
        "bind" = SYS_bind(0, 0, 0);
        "listen" = SYS_listen(0, 0);
        "connect" = SYS_connect(0, 0, 0);
        "accept" = SYS_accept(0, 0, 0);
        "sendto an address" = SYS_sendto(0, 0, 0, 0, text(c"x"), 3);
        "recvfrom" = SYS_recvfrom(0, 0, 0, 0, 0, 0);
        "sendmmsg" = SYS_sendmmsg(0, 0, 0, 0);
        "recvmmsg" = SYS_recvmmsg(0, 0, 0, 0, 0);
        "shutdown" = SYS_shutdown(0, 0);
        "setsockopt" = SYS_setsockopt(0, 1, 8, 0, 0);
        "getsockopt SO_PEERPIDFD" = SYS_getsockopt(0, 1, 77, 0, 0);
        "getsockopt of TCP" = SYS_getsockopt(0, 6, 3, 0, 0);
        "getsockname" = SYS_getsockname(0, 0, 0);
    }
}

/// Code of its own, memory of others.
fn memory() -> Vec<Attempt> {
    calls! { "memory":
        "mmap of code" = SYS_mmap(0, 4096, number(libc::PROT_READ | libc::PROT_EXEC), number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), NONE, 0);
        "mprotect to code" = SYS_mprotect(0, 4096, number(libc::PROT_READ | libc::PROT_EXEC));
        "mprotect to code that it may write" = SYS_mprotect(0, 4096, number(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC));
        "pkey_mprotect" = SYS_pkey_mprotect(0, 4096, number(libc::PROT_EXEC), NONE);
        "remap_file_pages" = SYS_remap_file_pages(0, 0, 0, 0, 0);
        "memfd_create" = SYS_memfd_create(text(c"x"), 0);
        "memfd_secret" = SYS_memfd_secret(0);
        "userfaultfd" = SYS_userfaultfd(0);
        "mlock" = SYS_mlock(0, 4096);
        "mlockall" = SYS_mlockall(1);
        "shmget" = SYS_shmget(0, 4096, 0o1600);
        "shmat" = SYS_shmat(0, 0, 0);
        "msgget" = SYS_msgget(0, 0o1600);
        "semget" = SYS_semget(0, 1, 0o1600);
        "mq_open" = SYS_mq_open(text(c"x"), 0o102, 0o600, 0);
        "mbind" = SYS_mbind(0, 0, 0, 0, 0, 0);
    }
}

/// Large and seldom used parts of the kernel.
fn kernel() -> Vec<Attempt> {
    calls! { "kernel":
        "bpf" = SYS_bpf(0, 0, 0);
        "io_uring_setup" = SYS_io_uring_setup(1, 0);
        "io_uring_enter" = SYS_io_uring_enter(0, 0, 0, 0, 0, 0);
        "io_uring_register" = SYS_io_uring_register(0, 0, 0, 0);
        "io_setup" = SYS_io_setup(1, 0);
        "perf_event_open" = SYS_perf_event_open(0, 0, NONE, NONE, 0);
        "keyctl" = SYS_keyctl(0, 0, 0, 0, 0);
        "add_key" = SYS_add_key(text(c"user"), text(c"x"), text(c"x"), 1, -3);
        "request_key" = SYS_request_key(text(c"user"), text(c"x"), 0, 0);
        "init_module" = SYS_init_module(0, 0, 0);
        "finit_module" = SYS_finit_module(0, 0, 0);
        "delete_module" = SYS_delete_module(text(c"x"), 0);
        "kexec_load" = SYS_kexec_load(0, 0, 0, 0);
        "kexec_file_load" = SYS_kexec_file_load(NONE, NONE, 0, 0, 0);
        "reboot" = SYS_reboot(0, 0, 0, 0);
        "swapon" = SYS_swapon(text(c"/x"), 0);
        "acct" = SYS_acct(text(c"/x"));
        "syslog" = SYS_syslog(3, 0, 0);
        "iopl" = SYS_iopl(3);
        "ioperm" = SYS_ioperm(0, 1, 1);
        "modify_ldt" = SYS_modify_ldt(0, 0, 0);
        "settimeofday" = SYS_settimeofday(0, 0);
        "clock_settime" = SYS_clock_settime(0, 0);
        "adjtimex" = SYS_adjtimex(0);
        "sethostname" = SYS_sethostname(text(c"x"), 1);
        "quotactl" = SYS_quotactl(0, 0, 0, 0);
        "vhangup" = SYS_vhangup();
        "uname" = SYS_uname(0);
        "sysinfo" = SYS_sysinfo(0);
    }
}

/// Who the process is, and what holds it.
fn privileges() -> Vec<Attempt> {
    calls! { "privileges":
        "unshare" = SYS_unshare(number(libc::CLONE_NEWUSER));
        "setns" = SYS_setns(0, 0);
        "setuid" = SYS_setuid(0);
        "setgid" = SYS_setgid(0);
        "setresuid" = SYS_setresuid(0, 0, 0);
        "setgroups" = SYS_setgroups(0, 0);
        "capset" = SYS_capset(0, 0);
        "prctl" = SYS_prctl(number(libc::PR_SET_DUMPABLE), 1);
        "arch_prctl" = SYS_arch_prctl(0, 0);
        "personality" = SYS_personality(0);
        "seccomp" = SYS_seccomp(0, 0, 0);
        "landlock_restrict_self" = SYS_landlock_restrict_self(0, 0);
        "setrlimit" = SYS_setrlimit(0, 0);
        "rt_sigaction" = SYS_rt_sigaction(11, 0, 0, 8);
        "umask" = SYS_umask(0);
        "setitimer" = SYS_setitimer(0, 0, 0);
    }
}

/// Descriptors that the server does not need.
fn descriptors() -> Vec<Attempt> {
    calls! { "descriptors":
        "dup" = SYS_dup(0);
        "dup2" = SYS_dup2(0, 1);
        "dup3" = SYS_dup3(0, 1, 0);
        "close_range" = SYS_close_range(3, 3, 0);
        "pipe2" = SYS_pipe2(0, 0);
        "timerfd_create" = SYS_timerfd_create(1, 0);
        "signalfd4" = SYS_signalfd4(NONE, 0, 8, 0);
        "epoll_create1" = SYS_epoll_create1(0);
        "splice" = SYS_splice(0, 0, 1, 0, 1, 0);
        "tee" = SYS_tee(0, 1, 1, 0);
        "vmsplice" = SYS_vmsplice(1, 0, 0, 0);
        "sendfile" = SYS_sendfile(1, 0, 0, 1);
        "copy_file_range" = SYS_copy_file_range(0, 0, 1, 0, 1, 0);
        "lseek" = SYS_lseek(2, 0, 0);
        "readv" = SYS_readv(0, 0, 0);
        "pwritev2" = SYS_pwritev2(2, 0, 0, 0, 0, 0);
        "fcntl F_DUPFD" = SYS_fcntl(0, number(libc::F_DUPFD), 0);
        "fcntl F_SETFD" = SYS_fcntl(0, number(libc::F_SETFD), 0);
        "fcntl F_SETFL" = SYS_fcntl(0, number(libc::F_SETFL), 0);
        "fcntl F_SETOWN" = SYS_fcntl(0, number(libc::F_SETOWN), 1);
        "fcntl F_SETSIG" = SYS_fcntl(0, 10, 9);
        "fcntl F_ADD_SEALS" = SYS_fcntl(0, number(libc::F_ADD_SEALS), 0);
        "fcntl F_SETLEASE" = SYS_fcntl(0, number(libc::F_SETLEASE), 0);
        "fcntl F_SETPIPE_SZ" = SYS_fcntl(0, number(libc::F_SETPIPE_SZ), 0);
        "fcntl F_SETLK" = SYS_fcntl(0, number(libc::F_SETLK), 0);
    }
}

/// Requests of what is no device.
fn terminals_and_requests() -> Vec<Attempt> {
    calls! { "requests":
        "TIOCSTI" = SYS_ioctl(0, 0x5412, text(c"x"));
        "TIOCLINUX" = SYS_ioctl(0, 0x541c, 0);
        "TIOCSCTTY" = SYS_ioctl(0, 0x540e, 0);
        "FIOASYNC" = SYS_ioctl(0, 0x5452, 0);
        "FIOSETOWN" = SYS_ioctl(0, 0x8901, 0);
        "SIOCGIFCONF" = SYS_ioctl(0, 0x8912, 0);
        "KVM_CREATE_VM" = SYS_ioctl(0, 0xae01, 0);
        "BLKRRPART" = SYS_ioctl(0, 0x125f, 0);
        "FS_IOC_SETFLAGS" = SYS_ioctl(0, 0x4008_6602, 0);
        "FICLONE" = SYS_ioctl(0, 0x4004_9409, 0);
        "VHOST_SET_OWNER" = SYS_ioctl(0, 0xaf01, 0);
        "TUNSETIFF" = SYS_ioctl(0, 0x4004_54ca, 0);
        "VFIO_SET_IOMMU" = SYS_ioctl(0, 0x3b66, 1);
        "VFIO_GROUP_SET_CONTAINER" = SYS_ioctl(0, 0x3b68, 0);
        "VFIO_GROUP_GET_DEVICE_FD" = SYS_ioctl(0, 0x3b6a, 0);
        "VFIO_IOMMU_UNMAP_DMA" = SYS_ioctl(0, 0x3b72, 0);
        "VFIO_DEVICE_FEATURE" = SYS_ioctl(0, 0x3b75, 0);
        "IOMMU_VFIO_IOAS" = SYS_ioctl(0, 0x3b88, 0);
        "IOMMU_IOAS_CHANGE_PROCESS" = SYS_ioctl(0, 0x3b92, 0);
        "IOMMU_IOAS_CHANGE_PROCESS" = SYS_ioctl(0, 0x3b92, 0);
    }
}
