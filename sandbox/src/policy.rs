// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The policy, as data: which thread may make which system call with which arguments, why, and which test would notice if
//! it could not. What is not here is refused.
//!
//! docs/security.md shows these tables; a test compares.

use vfio::ioctl::{self, Ioctl};

/// The kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thread {
    /// Waits for messages and answers them.
    Loop,
    /// Binds, maps, releases.
    Worker,
    /// Resets.
    Reset,
    /// Rings doorbells of virtio functions, and passes on interrupts that rings share.
    Kick,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Loop, Self::Worker, Self::Reset, Self::Kick];

    /// As the tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Worker => "worker",
            Self::Reset => "reset",
            Self::Kick => "kick",
        }
    }
}

use Thread::{Kick, Loop, Reset, Worker};

/// A system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// Its name in the kernel's tables.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: libc::c_long,
}

macro_rules! system_call {
    ($name:ident) => {
        SystemCall { name: stringify!($name), number: numbers::$name }
    };
}

/// The numbers, under the names of the calls.
mod numbers {
    #![allow(non_upper_case_globals)]

    macro_rules! numbers {
        ($($(#[$attribute:meta])* $name:ident = $number:ident;)*) => {
            $($(#[$attribute])* pub(super) const $name: libc::c_long = libc::$number;)*
        };
    }

    numbers! {
        accept4 = SYS_accept4;
        brk = SYS_brk;
        clock_gettime = SYS_clock_gettime;
        close = SYS_close;
        epoll_ctl = SYS_epoll_ctl;
        epoll_pwait = SYS_epoll_pwait;
        eventfd2 = SYS_eventfd2;
        exit = SYS_exit;
        exit_group = SYS_exit_group;
        fcntl = SYS_fcntl;
        fstat = SYS_fstat;
        futex = SYS_futex;
        getdents64 = SYS_getdents64;
        getpeername = SYS_getpeername;
        getsockopt = SYS_getsockopt;
        ioctl = SYS_ioctl;
        madvise = SYS_madvise;
        mmap = SYS_mmap;
        mprotect = SYS_mprotect;
        mremap = SYS_mremap;
        munmap = SYS_munmap;
        newfstatat = SYS_newfstatat;
        openat = SYS_openat;
        ppoll = SYS_ppoll;
        pread64 = SYS_pread64;
        pwrite64 = SYS_pwrite64;
        read = SYS_read;
        readlinkat = SYS_readlinkat;
        recvmsg = SYS_recvmsg;
        rt_sigprocmask = SYS_rt_sigprocmask;
        rt_sigreturn = SYS_rt_sigreturn;
        sched_yield = SYS_sched_yield;
        sendmsg = SYS_sendmsg;
        sendto = SYS_sendto;
        #[cfg(feature = "model")]
        setsockopt = SYS_setsockopt;
        sigaltstack = SYS_sigaltstack;
        #[cfg(feature = "model")]
        socketpair = SYS_socketpair;
        write = SYS_write;
    }
}

/// What an argument of a call must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Which, from 0.
    pub place: u8,
    /// In words.
    pub words: &'static str,
    /// What of its low 32 bits counts; the kernel looks at no others of these arguments.
    pub mask: u32,
    /// What that must be; or must not be, with `is_other`.
    pub value: u32,
    /// Whether it must be anything but `value`.
    pub is_other: bool,
}

/// What would notice that something is not allowed which is needed. `policy-proof` among the tests' programs sees to it that it
/// does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// A test of first light, whose server is killed.
    FirstLight {
        /// The devices.
        topology: &'static str,
        /// The kernel, modelled or real.
        kernel: &'static str,
        /// Whether only a real one shows it.
        needs_real_kernel: bool,
        /// The test.
        test: &'static str,
    },
    /// None; and why the entry stays.
    Untestable(&'static str),
}

const fn on(topology: &'static str, test: &'static str) -> Witness {
    Witness::FirstLight { topology, kernel: "7.3", needs_real_kernel: false, test }
}

const fn on_6_12(topology: &'static str, test: &'static str) -> Witness {
    Witness::FirstLight { topology, kernel: "6.12", needs_real_kernel: false, test }
}

const fn on_real_kernel(topology: &'static str, test: &'static str) -> Witness {
    Witness::FirstLight { topology, kernel: "7.3", needs_real_kernel: true, test }
}

const fn untestable(why: &'static str) -> Witness {
    Witness::Untestable(why)
}

/// Something that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is called in the tables, and by who takes it away.
    pub name: &'static str,
    /// Which call.
    pub call: SystemCall,
    /// With which arguments; each must be as it says.
    pub arguments: &'static [Argument],
    /// By which threads.
    pub threads: &'static [Thread],
    /// What for.
    pub why: &'static str,
    /// What fails without.
    pub test: Witness,
}

const EVERY: &[Thread] = &Thread::ALL;
const LOOP: &[Thread] = &[Loop];
const WORKER: &[Thread] = &[Worker];
const RESET: &[Thread] = &[Reset];
const LOOP_AND_WORKER: &[Thread] = &[Loop, Worker];
#[cfg(feature = "model")]
const KICK: &[Thread] = &[Kick];
const LOOP_AND_KICK: &[Thread] = &[Loop, Kick];
/// Every one that asks devices.
const ASKING: &[Thread] = &[Loop, Worker, Reset];
const NEVER_THE_LOOP: &[Thread] = &[Worker, Reset, Kick];

const fn is(place: u8, words: &'static str, value: u32) -> Argument {
    Argument { place, words, mask: u32::MAX, value, is_other: false }
}

const fn lacks(place: u8, words: &'static str, bits: u32) -> Argument {
    Argument { place, words, mask: bits, value: 0, is_other: false }
}

const fn is_not(place: u8, words: &'static str, value: u32) -> Argument {
    Argument { place, words, mask: u32::MAX, value, is_other: true }
}

/// Constants of C have the type that C gives them; their bits are what the kernel sees.
const fn bits(constant: libc::c_int) -> u32 {
    constant.cast_unsigned()
}

const NO_EXECUTION: Argument = lacks(2, "not PROT_EXEC", bits(libc::PROT_EXEC));
const FOR_READING: &[Argument] = &[
    is_not(0, "not AT_FDCWD", bits(libc::AT_FDCWD)),
    lacks(
        2,
        "for reading, nothing is made",
        bits(
            libc::O_ACCMODE
                | libc::O_CREAT
                | libc::O_TRUNC
                | libc::O_APPEND
                | (libc::O_TMPFILE & !libc::O_DIRECTORY),
        ),
    ),
];

const fn socket_option(words: &'static str, option: libc::c_int) -> [Argument; 2] {
    [is(1, "SOL_SOCKET", bits(libc::SOL_SOCKET)), is(2, words, bits(option))]
}

const SO_DOMAIN: [Argument; 2] = socket_option("SO_DOMAIN", libc::SO_DOMAIN);
const SO_TYPE: [Argument; 2] = socket_option("SO_TYPE", libc::SO_TYPE);
const SO_ACCEPTCONN: [Argument; 2] = socket_option("SO_ACCEPTCONN", libc::SO_ACCEPTCONN);
const SO_PEERCRED: [Argument; 2] = socket_option("SO_PEERCRED", libc::SO_PEERCRED);

macro_rules! entries {
    ($($name:literal, $call:ident, $arguments:expr, $threads:ident, $why:literal, $test:expr;)*) => {
        &[$(Entry { name: $name, call: system_call!($call), arguments: $arguments, threads: $threads, why: $why, test: $test }),*]
    };
}

/// The system calls but for the requests of devices and of the iommufd, which are in [`REQUESTS`].
pub const CALLS: &[Entry] = entries! {
    "read", read, &[], LOOP_AND_WORKER, "what other threads and the kernel have to tell; attributes of sysfs", on("edu-pair", "devices_are_described");
    "write", write, &[], EVERY, "the log; telling other threads", on("edu-pair", "devices_are_described");
    "close", close, &[], EVERY, "whatever was handed over, when it is not needed any more", on("edu-pair", "devices_are_described");
    "pread64", pread64, &[], ASKING, "regions of devices; the header of a function in sysfs", on("edu-pair", "devices_are_described");
    "pwrite64", pwrite64, &[], EVERY, "regions of devices", on_real_kernel("edu-pair", "dma_arrives_in_guest_memory");
    "sendto", sendto, &[is(4, "no address", 0)], EVERY, "a signal, told to the loop by whichever thread got it", on("edu-pair", "sigterm_ends_the_server_at_once");
    "recvmsg", recvmsg, &[], LOOP, "messages", on("edu-pair", "devices_are_described");
    "sendmsg", sendmsg, &[], LOOP, "replies and events", on("edu-pair", "devices_are_described");
    "epoll_pwait", epoll_pwait, &[], LOOP_AND_KICK, "waiting for messages, and for kicks", on("edu-pair", "devices_are_described");
    "ppoll", ppoll, &[], LOOP_AND_KICK, "whether an eventfd of a client has room", on("virtio-pair", "a_reset_by_somebody_else_is_told_and_the_frontend_begins_anew");
    "epoll_ctl", epoll_ctl, &[], LOOP_AND_WORKER, "what to wait for; kicks, when a device is started", on("edu-pair", "devices_are_described");
    "accept4", accept4, &[], LOOP, "clients of listening sockets", on("edu-pair", "a_listening_face_takes_one_client_after_the_other");
    "futex", futex, &[], EVERY, "waiting for other threads", on("edu-pair", "devices_are_described");
    "mmap", mmap, &[NO_EXECUTION], EVERY, "memory of our own; guest memory on a kernel without IOMMU_IOAS_MAP_FILE", on_6_12("edu-pair", "dma_arrives_in_guest_memory");
    "munmap", munmap, &[], EVERY, "giving that back", on("edu-pair", "a_reset_that_waits_hinders_nobody_and_ends_with_the_server");
    "mprotect", mprotect, &[NO_EXECUTION], EVERY, "a heap that grows", untestable("the heap of a thread grows so, and how large it is depends on the build");
    "sched_yield", sched_yield, &[], EVERY, "two threads at one channel at the same moment", untestable("the standard library yields when it finds the other in the middle of it, which first light has seen once in some thousand tests");
    "mremap", mremap, &[], EVERY, "a buffer that grows", untestable("the heap does so from 128 KiB on, or not, by its own choice");
    "madvise", madvise, &[], EVERY, "a heap that shrinks; the stack of a thread that ends", on("edu-pair", "a_reset_that_waits_hinders_nobody_and_ends_with_the_server");
    "brk", brk, &[], EVERY, "a heap that grows", on("edu-pair", "more_regions_than_the_table_has_are_refused");
    "clock_gettime", clock_gettime, &[], EVERY, "the time, where the kernel gives it no other way", untestable("there is a way without a call on every machine that tests run on, but not on one with an unstable clock");
    "fstat", fstat, &[], ASKING, "what kind of file was handed over", on("edu-pair", "devices_are_described");
    "fcntl F_GETFD", fcntl, &[is(1, "F_GETFD", bits(libc::F_GETFD))], EVERY, "the standard library looks whether what it closes is open, in debug builds", on("edu-pair", "devices_are_described");
    "fcntl F_GETFL", fcntl, &[is(1, "F_GETFL", bits(libc::F_GETFL))], LOOP, "whether memory is open for writing", on("edu-pair", "dma_arrives_in_guest_memory");
    "fcntl F_GET_SEALS", fcntl, &[is(1, "F_GET_SEALS", bits(libc::F_GET_SEALS))], LOOP, "whether memory may shrink", on("edu-pair", "dma_arrives_in_guest_memory");
    "fcntl F_DUPFD_CLOEXEC", fcntl, &[is(1, "F_DUPFD_CLOEXEC", bits(libc::F_DUPFD_CLOEXEC))], LOOP_AND_WORKER, "guest memory on a kernel without IOMMU_IOAS_MAP_FILE; a device whose BARs its client maps; the page of a control ring; something to close when there are too many descriptors", on_6_12("edu-pair", "dma_arrives_in_guest_memory");
    "fcntl F_SETFD", fcntl, &[is(1, "F_SETFD", bits(libc::F_SETFD)), is(2, "FD_CLOEXEC", bits(libc::FD_CLOEXEC))], LOOP_AND_WORKER, "musl does so after F_DUPFD_CLOEXEC", untestable("tests are not built with musl");
    "ioctl FIONBIO", ioctl, &[is(1, "FIONBIO", 0x5421)], LOOP, "sockets that were handed over do not block", on("edu-pair", "dma_arrives_in_guest_memory");
    "getsockopt SO_DOMAIN", getsockopt, &SO_DOMAIN, LOOP, "what kind of socket was handed over", on("edu-pair", "a_face_needs_a_unix_stream");
    "getsockopt SO_TYPE", getsockopt, &SO_TYPE, LOOP, "what kind of socket was handed over", on("edu-pair", "a_face_needs_a_unix_stream");
    "getsockopt SO_ACCEPTCONN", getsockopt, &SO_ACCEPTCONN, LOOP, "whether it listens", on("edu-pair", "a_face_needs_a_unix_stream");
    "getsockopt SO_PEERCRED", getsockopt, &SO_PEERCRED, LOOP, "who is at the other end", on("edu-pair", "an_msi_signals_its_eventfd");
    "getpeername", getpeername, &[], LOOP, "whether a socket is connected", on("edu-pair", "a_face_needs_a_unix_stream");
    "eventfd2", eventfd2, &[], WORKER, "errors and unplug requests of a new device", on("edu-pair", "devices_are_described");
    "rt_sigreturn", rt_sigreturn, &[], EVERY, "the end of a signal", on("edu-pair", "sigterm_ends_the_server_at_once");
    "rt_sigprocmask", rt_sigprocmask, &[], EVERY, "a thread that ends", on("edu-pair", "a_reset_that_waits_hinders_nobody_and_ends_with_the_server");
    "sigaltstack", sigaltstack, &[], EVERY, "a thread that ends", on("edu-pair", "a_reset_that_waits_hinders_nobody_and_ends_with_the_server");
    "exit", exit, &[], NEVER_THE_LOOP, "a thread that ends", on("edu-pair", "a_reset_that_waits_hinders_nobody_and_ends_with_the_server");
    "exit_group", exit_group, &[], LOOP, "the end", on("edu-pair", "sigterm_ends_the_server_at_once");
};

/// The calls with which sysfs is read, where it may be.
pub const SYSFS_CALLS: &[Entry] = entries! {
    "openat", openat, FOR_READING, LOOP_AND_WORKER, "attributes of sysfs", on("edu-pair", "devices_are_described");
    "readlinkat", readlinkat, &[], LOOP_AND_WORKER, "drivers and groups in sysfs", on("edu-pair", "devices_are_described");
    "getdents64", getdents64, &[], LOOP_AND_WORKER, "members of groups in sysfs", on("edu-pair", "devices_are_described");
    "newfstatat", newfstatat, &[], LOOP_AND_WORKER, "what is there in sysfs", on("edu-pair", "devices_are_described");
};

/// What a client of the model kernel needs besides: it asks on sockets.
#[cfg(feature = "model")]
pub const MODEL_CALLS: &[Entry] = entries! {
    "model fstat", fstat, &[], KICK, "whether an open file is the model kernel's", untestable("no release has it");
    "model socketpair", socketpair, &[], EVERY, "the reply of the model kernel", untestable("no release has it");
    "model sendmsg", sendmsg, &[], NEVER_THE_LOOP, "requests to the model kernel", untestable("no release has it");
    "model recvmsg", recvmsg, &[], NEVER_THE_LOOP, "replies of the model kernel", untestable("no release has it");
    "model setsockopt", setsockopt, &[], EVERY, "how long the model kernel is waited for", untestable("no release has it");
    "model getsockopt", getsockopt, &SO_TYPE, NEVER_THE_LOOP, "whether an open file is the model kernel's", untestable("no release has it");
};

/// A request of devices or of the iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub ioctl: Ioctl,
    /// By which threads.
    pub threads: &'static [Thread],
    /// Whether it is needed only to take in devices.
    pub is_for_new_devices: bool,
    /// What for.
    pub why: &'static str,
    /// What fails without.
    pub test: Witness,
}

const fn request(ioctl: Ioctl, threads: &'static [Thread], why: &'static str, test: Witness) -> Request {
    Request { ioctl, threads, is_for_new_devices: false, why, test }
}

const fn for_new_devices(
    ioctl: Ioctl,
    threads: &'static [Thread],
    why: &'static str,
    test: Witness,
) -> Request {
    Request { ioctl, threads, is_for_new_devices: true, why, test }
}

/// All requests. Those of legacy groups and containers are not among them, nor is `VFIO_IOAS`: without it 0x3b71 can mean
/// nothing but a hot reset.
pub const REQUESTS: &[Request] = &[
    request(ioctl::DEVICE_SET_IRQS, ASKING, "interrupts", on("edu-pair", "an_msi_signals_its_eventfd")),
    request(
        ioctl::DEVICE_IOEVENTFD,
        LOOP_AND_WORKER,
        "kicks of a virtio device's frontend that become doorbells",
        on("virtio-pair", "a_frontend_reads_back_what_it_wrote"),
    ),
    request(
        ioctl::DEVICE_GET_IRQ_INFO,
        LOOP_AND_WORKER,
        "what a client asks about interrupts; the vectors of a virtio function",
        on("edu-pair", "a_client_is_told_how_many_interrupts_there_are"),
    ),
    request(
        ioctl::DEVICE_GET_PCI_HOT_RESET_INFO,
        &[Loop, Reset],
        "who is reset along with a device",
        on("edu-pair", "both_functions_of_the_pair_are_ours"),
    ),
    request(ioctl::DEVICE_RESET, RESET, "function resets", on("edu-igb", "function_reset_is_preferred")),
    request(
        ioctl::DEVICE_PCI_HOT_RESET,
        RESET,
        "hot resets",
        on("edu-pair", "a_hot_reset_leaves_quiet_devices"),
    ),
    request(
        ioctl::IOMMU_IOAS_MAP_FILE,
        LOOP_AND_WORKER,
        "guest memory, and whether the kernel has this",
        on("edu-pair", "dma_arrives_in_guest_memory"),
    ),
    request(
        ioctl::IOMMU_IOAS_MAP,
        WORKER,
        "guest memory on a kernel without IOMMU_IOAS_MAP_FILE",
        on_6_12("edu-pair", "dma_arrives_in_guest_memory"),
    ),
    request(
        ioctl::IOMMU_IOAS_UNMAP,
        WORKER,
        "guest memory that goes",
        on("edu-pair", "regions_come_and_go_one_by_one"),
    ),
    request(
        ioctl::IOMMU_IOAS_COPY,
        WORKER,
        "guest memory of which a part goes",
        on("edu-pair", "memory_that_two_clients_have_changes_with_each_of_them"),
    ),
    request(
        ioctl::IOMMU_IOAS_ALLOC,
        LOOP_AND_WORKER,
        "the address space of the VM, and what succeeds it when a part of the memory goes",
        on("edu-pair", "devices_are_described"),
    ),
    request(
        ioctl::IOMMU_HWPT_ALLOC,
        WORKER,
        "page tables of an address space",
        on("edu-pair", "devices_are_described"),
    ),
    request(
        ioctl::DEVICE_ATTACH_IOMMUFD_PT,
        WORKER,
        "a new device, and all of them when an address space is succeeded",
        on("edu-pair", "devices_are_described"),
    ),
    request(
        ioctl::IOMMU_IOAS_IOVA_RANGES,
        LOOP_AND_WORKER,
        "what the IOMMU can map",
        on("edu-pair", "dma_arrives_in_guest_memory"),
    ),
    request(
        ioctl::IOMMU_DESTROY,
        LOOP_AND_WORKER,
        "page tables and address spaces that go",
        on("edu-pair", "closing_the_connection_frees_the_devices"),
    ),
    request(
        ioctl::DEVICE_DETACH_IOMMUFD_PT,
        LOOP_AND_WORKER,
        "a device that goes",
        on("edu-pair", "a_removed_device_can_be_used_again"),
    ),
    for_new_devices(
        ioctl::DEVICE_GET_INFO,
        WORKER,
        "what a new device has",
        on("edu-pair", "devices_are_described"),
    ),
    for_new_devices(
        ioctl::DEVICE_GET_REGION_INFO,
        WORKER,
        "what a new device has",
        on("edu-pair", "devices_are_described"),
    ),
    for_new_devices(
        ioctl::DEVICE_BIND_IOMMUFD,
        WORKER,
        "a new device",
        on("edu-pair", "devices_are_described"),
    ),
    for_new_devices(
        ioctl::IOMMU_OPTION,
        LOOP,
        "how pinned memory is accounted",
        on("edu-pair", "devices_are_described"),
    ),
];

/// What of sysfs is there in the empty root, below its own root.
pub const SYSFS_SUBTREES: &[&str] =
    &["devices", "bus/pci", "dev/char", "class/misc", "kernel/iommu_groups", "kernel/irq", "module/iommufd"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_request_that_can_be_issued_is_somebodys() {
        let allowed: BTreeSet<_> = REQUESTS.iter().map(|request| request.ioctl.number).collect();
        let issued: BTreeSet<_> = ioctl::ALL.iter().map(|ioctl| ioctl.number).collect();
        assert_eq!(allowed, issued);
    }

    #[test]
    fn nothing_stands_in_a_table_twice() {
        let names: Vec<_> = CALLS.iter().chain(SYSFS_CALLS).map(|entry| entry.name).collect();
        let distinct: BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn no_request_of_a_container_is_allowed_and_no_compatibility_address_space() {
        for number in (0x3b64..=0x3b6a).chain([0x3b88]) {
            assert!(REQUESTS.iter().all(|request| request.ioctl.number != number), "{number:#x}");
        }
    }
}
