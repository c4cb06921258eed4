// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whatever users, the host and the content of guest memory do to a function, it does not panic.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use crate::model::argument::Argument;
use crate::model::function::Reset;
use crate::model::function::fixture::{MEMORY, Opened, PARTS, interrupt, open};

/// Something that a user or the host can do.
#[derive(Clone, Debug)]
enum Deed {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Ioctl(u32, Vec<u8>, bool),
    Map(u64, u64),
    Reset(bool),
    Reopen,
    Hear,
}

fn position() -> impl Strategy<Value = u64> {
    let near = (0_u64..10, prop_oneof![0_u64..0x200, 0x1000_u64..0x3100, 0xf_fff0_u64..0x10_0010]);
    prop_oneof![9 => near.prop_map(|(region, offset)| (region << 40) | offset), 1 => any::<u64>()]
}

fn ioctl_bytes() -> impl Strategy<Value = Vec<u8>> {
    let words = proptest::collection::vec(prop_oneof![0_u32..70, any::<u32>()], 0..12);
    prop_oneof![
        words.prop_map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect()),
        proptest::collection::vec(any::<u8>(), 0..48)
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        (0_u64..0x200).prop_map(|value| value.to_le_bytes().to_vec()),
        // Addresses in guest memory, for DMA and rings.
        (MEMORY..MEMORY + 0x1_0000).prop_map(|value| value.to_le_bytes().to_vec()),
    ];
    prop_oneof![
        4 => (position(), 0_usize..40).prop_map(|(position, length)| Deed::Read(position, length)),
        8 => (position(), data).prop_map(|(position, data)| Deed::Write(position, data)),
        4 => (prop_oneof![0x3b6b_u32..0x3b77, any::<u32>()], ioctl_bytes(), any::<bool>())
            .prop_map(|(number, bytes, with_fds)| Deed::Ioctl(number, bytes, with_fds)),
        1 => (position(), any::<u64>()).prop_map(|(position, length)| Deed::Map(position, length)),
        1 => any::<bool>().prop_map(Deed::Reset),
        1 => Just(Deed::Reopen),
        1 => Just(Deed::Hear),
    ]
}

fn perform(opened: &mut Opened, deed: Deed, eventfd: &OwnedFd) {
    match deed {
        Deed::Read(position, length) => {
            let _ = opened.function.read(position, &mut vec![0; length]);
        }
        Deed::Write(position, data) => {
            let _ = opened.function.write(position, &data, Some(&opened.memory));
        }
        Deed::Ioctl(number, mut bytes, with_fds) => {
            let fds = (0..8).map(|_| with_fds.then(|| eventfd.try_clone().unwrap())).collect();
            let _ = opened.function.ioctl(number, &mut Argument(&mut bytes), fds);
        }
        Deed::Map(position, length) => drop(opened.function.map(position, length)),
        Deed::Reset(by_bus) => opened.function.reset(if by_bus { Reset::Bus } else { Reset::Function }),
        Deed::Reopen => {
            opened.function.close();
            opened.function.open(true);
        }
        Deed::Hear => {
            let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
            opened.function.hear(Some(&opened.memory));
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_is_done_to_a_function_makes_it_panic(
        part in 0..PARTS.len(),
        guest in proptest::collection::vec(any::<u8>(), 0x100),
        deeds in proptest::collection::vec(deed(), 0..80),
    ) {
        let mut opened = open(PARTS[part].0);
        for page in 0..16 {
            opened.put(MEMORY + page * 0x1000, &guest);
        }
        let eventfd = interrupt();
        for deed in deeds {
            perform(&mut opened, deed, &eventfd);
        }
    }
}
