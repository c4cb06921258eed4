// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest sees of a function that is served, next to what it sees of the same one in QEMU's own hands.

use std::process::Command;

use vhost_device_vfio_tests::guest::{Guest, Way};

use super::stage::Stage;

/// What a guest sees of a function.
#[derive(Debug, PartialEq, Eq)]
struct View {
    config: Vec<u8>,
    /// The base addresses: start, end and flags of each.
    resources: Vec<String>,
    /// What `lspci -vvv` makes of the config space.
    decoded: Vec<String>,
    driver: String,
    /// Which resets the guest's kernel finds.
    resets: String,
}

impl View {
    fn of(guest: &mut Guest, number: usize) -> Self {
        let function = format!("/sys/bus/pci/devices/{}", Guest::address(number));
        let dump = guest.run(&format!("xxd -p -c 16 {function}/config"));
        let digits = dump.lines().collect::<String>();
        let byte = |place| u8::from_str_radix(&digits[place..place + 2], 16).expect("a byte");
        let config: Vec<_> = (0..digits.len()).step_by(2).map(byte).collect();
        Self {
            decoded: decode(&config),
            config,
            resources: guest.run(&format!("cat {function}/resource")).lines().map(str::to_owned).collect(),
            driver: guest.run(&format!("readlink {function}/driver || true")),
            resets: guest.run(&format!("cat {function}/reset_method || true")),
        }
    }
}

/// What `lspci` says of a config space.
fn decode(config: &[u8]) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let line = |(number, bytes): (usize, &[u8])| {
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:02x}: {}\n", number * 16, bytes.join(" "))
    };
    let dump: String = config.chunks(16).enumerate().map(line).collect();
    std::fs::write(file.path(), format!("01:00.0 function\n{dump}")).expect("the dump");
    let output = Command::new("lspci").args(["-vvv", "-F"]).arg(file.path()).output().expect("lspci runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect()
}

pub(crate) fn a_served_function_looks_as_one_in_process(stage: &Stage) {
    stage.clear();
    let views = Way::WHOLE.map(|way| {
        let passthrough = stage.passthrough(way);
        let mut guest = Guest::boot(&passthrough);
        let views: Vec<_> =
            (0..passthrough.functions().len()).map(|number| View::of(&mut guest, number)).collect();
        assert_eq!(guest.quit(), "");
        views
    });
    let [in_process, served] = views;
    for (number, (in_process, served)) in in_process.iter().zip(&served).enumerate() {
        assert_eq!(in_process.decoded, served.decoded, "function {number}");
        assert_eq!(in_process, served, "function {number}");
    }
}
