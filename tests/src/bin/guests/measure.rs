// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How fast a guest reads its disk and boots, and what the server does meanwhile, next to QEMU with the device in its own
//! hands. Only ratios are printed: the machine is emulated.

use std::time::{Duration, Instant};

use vhost_device_vfio_tests::guest::{Guest, Passthrough, Settings, Way};
use vhost_device_vfio_tests::server_process::binary;

use super::FIRST;

const SECONDS: u64 = 4;
/// How long the server is watched while its guest idles.
const IDLE: Duration = Duration::from_secs(5);
const ROUNDS: usize = 2;
/// Who has the device, and how its registers are reached.
const WAYS: [(&str, Way, &[&str]); 3] = [
    ("in QEMU", Way::InProcess, &[]),
    ("served", Way::Served, &[]),
    ("served, BARs mapped", Way::Served, &["--server-argument=--bar-access=mmap"]),
];
/// How it is read: threads, and where.
const LOADS: [(u32, &str); 4] = [(1, "sequential"), (1, "random"), (32, "sequential"), (32, "random")];

/// What was found with one guest.
#[derive(Debug, Default)]
struct Figures {
    boot: Duration,
    /// Blocks read in a second, by load.
    reads: [f64; LOADS.len()],
    /// Clock ticks that the servers had while the guest idled.
    idle_ticks: u64,
}

impl Figures {
    fn take(way: Way, arguments: &[&str]) -> Self {
        let passthrough = Passthrough::with_arguments(way, &[FIRST], arguments);
        let settings = Settings { programs: &[binary("reader")], ..Settings::default() };
        let begin = Instant::now();
        let mut guest = Guest::boot_with(&passthrough, &settings);
        let boot = begin.elapsed();
        let reads = LOADS.map(|(threads, pattern)| {
            let read = format!("reader /dev/nvme0n1 {threads} {pattern} {SECONDS}");
            guest.run(&read).parse().expect("a number")
        });
        let before = ticks(&passthrough);
        std::thread::sleep(IDLE);
        Self { boot, reads, idle_ticks: ticks(&passthrough) - before }
    }
}

/// The time of processors that the servers have had.
fn ticks(passthrough: &Passthrough) -> u64 {
    let of_process = |process| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process");
        // Behind the name, which is in parentheses, user and system time are fields 12 and 13.
        let (_, fields) = stat.rsplit_once(") ").expect("a name");
        let fields = fields.split(' ').skip(11).take(2);
        fields.map(|field| field.parse::<u64>().expect("a number")).sum::<u64>()
    };
    passthrough.servers().map_or(0, |servers| servers.processes().map(of_process).sum())
}

/// The best of the rounds, which others on the machine have disturbed least.
fn best(rounds: &[Figures], figure: impl Fn(&Figures) -> f64) -> f64 {
    rounds.iter().map(figure).fold(0.0, f64::max)
}

pub(crate) fn run() {
    let mut found: [Vec<Figures>; WAYS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, way, arguments), figures) in WAYS.iter().zip(&mut found) {
            figures.push(Figures::take(*way, arguments));
        }
    }
    let [in_process, served @ ..] = &found;
    println!("{:<22} {:<24} {:>6}", "device", "compared with in QEMU", "ratio");
    for ((name, ..), figures) in WAYS.iter().skip(1).zip(served) {
        let line = |what: &str, figure: &dyn Fn(&Figures) -> f64| {
            println!("{name:<22} {what:<24} {:>6.2}", best(figures, figure) / best(in_process, figure));
        };
        for (number, (threads, pattern)) in LOADS.iter().enumerate() {
            line(&format!("{pattern} reads, {threads}"), &|figures| figures.reads[number]);
        }
        line("boots in a time", &|figures| 1.0 / figures.boot.as_secs_f64());
        let ticks = figures.iter().map(|figures| figures.idle_ticks).min().unwrap_or_default();
        println!("{name:<22} {:<24} {ticks:>6}", "ticks in 5 s of idling");
    }
}
