// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is expected of each topology of the test VM, in numbers and names.

use vfio::HotReset;

use crate::answer::Answer;
use crate::machine::{Function, Machine, ResetSet};
use crate::part::{E1000E, EDU, I82559ER, IGB, NVME, VIRTIO_BLK, VIRTIO_NET, VIRTIO_QUEUES, VIRTIO_RNG};

const DONE: Answer<HotReset> = Ok(HotReset::Done);

/// A device that cannot be bound cannot be asked.
const NOT_ASKED: ResetSet =
    ResetSet { rows_with_all: Err("EPERM"), outcome_alone: Err("EPERM"), outcome_with_all: Err("EPERM") };
const ONE_GROUP: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:01:00.0 bound, 0000:01:00.1 bound"),
    outcome_alone: DONE,
    outcome_with_all: DONE,
};
const TWO_GROUPS: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:01:00.0 bound, 0000:01:00.1 bound"),
    outcome_alone: Err("EINVAL"),
    outcome_with_all: DONE,
};
const THREE_GROUPS: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:01:00.0 bound, 0000:01:00.1 bound, 0000:01:00.2 bound"),
    outcome_alone: Err("EINVAL"),
    outcome_with_all: DONE,
};
const FOUR_GROUPS: ResetSet = ResetSet {
    rows_with_all: Ok(
        "available: 0000:01:00.0 bound, 0000:01:00.1 bound, 0000:01:00.2 bound, 0000:01:00.3 bound, 0000:01:03.0 bound",
    ),
    outcome_alone: Err("EINVAL"),
    outcome_with_all: DONE,
};
const ALONE: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:01:00.0 bound"),
    outcome_alone: DONE,
    outcome_with_all: DONE,
};
const ALONE_UNCONFIRMED: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:01:00.0 bound"),
    outcome_alone: Ok(HotReset::DoneLinkUnconfirmed),
    outcome_with_all: Ok(HotReset::DoneLinkUnconfirmed),
};
const BUS: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:02:01.0 bound, 0000:02:02.0 bound, 0000:02:03.0 bound"),
    outcome_alone: DONE,
    outcome_with_all: DONE,
};
const BESIDE_SWITCH: ResetSet = ResetSet {
    rows_with_all: Ok(
        "blocked: 0000:01:00.0 not owned, 0000:02:00.0 not owned, 0000:03:00.0 not owned, 0000:02:01.0 not owned, 0000:04:00.0 not owned, 0000:01:00.1 bound",
    ),
    outcome_alone: Err("EINVAL"),
    outcome_with_all: Err("EINVAL"),
};
const FIRST_BELOW_SWITCH: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:03:00.0 bound"),
    outcome_alone: DONE,
    outcome_with_all: DONE,
};
const SECOND_BELOW_SWITCH: ResetSet = ResetSet {
    rows_with_all: Ok("available: 0000:04:00.0 bound"),
    outcome_alone: DONE,
    outcome_with_all: DONE,
};
const NO_SET: ResetSet =
    ResetSet { rows_with_all: Err("ENODEV"), outcome_alone: Err("ENODEV"), outcome_with_all: Err("ENODEV") };

/// An edu beside an igb in one slot.
const EDU_AND_IGB: &[Function] = &[
    Function {
        address: "0000:01:00.0",
        part: &EDU,
        group: 5,
        group_siblings: &[],
        has_function_reset: false,
        rows_alone: Ok("blocked: 0000:01:00.0 bound, 0000:01:00.1 not owned"),
        set: &TWO_GROUPS,
    },
    Function {
        address: "0000:01:00.1",
        part: &IGB,
        group: 6,
        group_siblings: &[],
        has_function_reset: true,
        rows_alone: Ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 bound"),
        set: &TWO_GROUPS,
    },
];

pub(crate) const MACHINES: &[Machine] = &[
    Machine {
        name: "edu-pair",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.1"],
                has_function_reset: false,
                rows_alone: Ok("available: 0000:01:00.0 bound, 0000:01:00.1 implied"),
                set: &ONE_GROUP,
            },
            Function {
                address: "0000:01:00.1",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.0"],
                has_function_reset: false,
                rows_alone: Ok("available: 0000:01:00.0 implied, 0000:01:00.1 bound"),
                set: &ONE_GROUP,
            },
        ],
    },
    Machine {
        name: "edu-noremap",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.1"],
                has_function_reset: false,
                rows_alone: Err("EPERM"),
                set: &NOT_ASKED,
            },
            Function {
                address: "0000:01:00.1",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.0"],
                has_function_reset: false,
                rows_alone: Err("EPERM"),
                set: &NOT_ASKED,
            },
        ],
    },
    Machine { name: "edu-igb", functions: EDU_AND_IGB },
    // The same answers whether the set is the bus or the slot.
    Machine { name: "hotplug-slot", functions: EDU_AND_IGB },
    // For a test that takes one of them out of its slot; of what the checks are about it has nothing new.
    Machine {
        name: "hotplug-pair",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &EDU,
                group: 6,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:01:00.0 bound"),
                set: &ALONE,
            },
            Function {
                address: "0000:02:00.0",
                part: &EDU,
                group: 7,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:02:00.0 bound"),
                set: &ALONE,
            },
        ],
    },
    Machine {
        name: "igb-pair",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &IGB,
                group: 5,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("blocked: 0000:01:00.0 bound, 0000:01:00.1 not owned"),
                set: &TWO_GROUPS,
            },
            Function {
                address: "0000:01:00.1",
                part: &IGB,
                group: 6,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 bound"),
                set: &TWO_GROUPS,
            },
        ],
    },
    Machine {
        name: "virtio-pair",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &VIRTIO_BLK,
                group: 5,
                group_siblings: &["0000:01:00.1"],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:01:00.0 bound, 0000:01:00.1 implied"),
                set: &ONE_GROUP,
            },
            Function {
                address: "0000:01:00.1",
                part: &VIRTIO_NET,
                group: 5,
                group_siblings: &["0000:01:00.0"],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:01:00.0 implied, 0000:01:00.1 bound"),
                set: &ONE_GROUP,
            },
        ],
    },
    Machine {
        name: "virtio-trio",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &VIRTIO_BLK,
                group: 5,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("blocked: 0000:01:00.0 bound, 0000:01:00.1 not owned, 0000:01:00.2 not owned"),
                set: &THREE_GROUPS,
            },
            Function {
                address: "0000:01:00.1",
                part: &IGB,
                group: 6,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 bound, 0000:01:00.2 not owned"),
                set: &THREE_GROUPS,
            },
            Function {
                address: "0000:01:00.2",
                part: &IGB,
                group: 7,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok("blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 bound"),
                set: &THREE_GROUPS,
            },
        ],
    },
    Machine {
        name: "five-devices",
        functions: &[
            Function {
                address: "0000:01:00.0",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.1"],
                has_function_reset: false,
                rows_alone: Ok(
                    "blocked: 0000:01:00.0 bound, 0000:01:00.1 implied, 0000:01:00.2 not owned, 0000:01:00.3 not owned, 0000:01:03.0 not owned",
                ),
                set: &FOUR_GROUPS,
            },
            Function {
                address: "0000:01:00.1",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.0"],
                has_function_reset: false,
                rows_alone: Ok(
                    "blocked: 0000:01:00.0 implied, 0000:01:00.1 bound, 0000:01:00.2 not owned, 0000:01:00.3 not owned, 0000:01:03.0 not owned",
                ),
                set: &FOUR_GROUPS,
            },
            Function {
                address: "0000:01:00.2",
                part: &IGB,
                group: 6,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok(
                    "blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 bound, 0000:01:00.3 not owned, 0000:01:03.0 not owned",
                ),
                set: &FOUR_GROUPS,
            },
            Function {
                address: "0000:01:00.3",
                part: &IGB,
                group: 7,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok(
                    "blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 not owned, 0000:01:00.3 bound, 0000:01:03.0 not owned",
                ),
                set: &FOUR_GROUPS,
            },
            Function {
                address: "0000:01:03.0",
                part: &IGB,
                group: 8,
                group_siblings: &[],
                has_function_reset: true,
                rows_alone: Ok(
                    "blocked: 0000:01:00.0 not owned, 0000:01:00.1 not owned, 0000:01:00.2 not owned, 0000:01:00.3 not owned, 0000:01:03.0 bound",
                ),
                set: &FOUR_GROUPS,
            },
        ],
    },
    Machine {
        name: "virtio-rng",
        functions: &[Function {
            address: "0000:01:00.0",
            part: &VIRTIO_RNG,
            group: 5,
            group_siblings: &[],
            has_function_reset: true,
            rows_alone: Ok("available: 0000:01:00.0 bound"),
            set: &ALONE,
        }],
    },
    Machine {
        name: "nvme",
        functions: &[Function {
            address: "0000:01:00.0",
            part: &NVME,
            group: 5,
            group_siblings: &[],
            has_function_reset: true,
            rows_alone: Ok("available: 0000:01:00.0 bound"),
            set: &ALONE,
        }],
    },
    Machine {
        name: "virtio-queues",
        functions: &[Function {
            address: "0000:01:00.0",
            part: &VIRTIO_QUEUES,
            group: 5,
            group_siblings: &[],
            has_function_reset: true,
            rows_alone: Ok("available: 0000:01:00.0 bound"),
            set: &ALONE,
        }],
    },
    Machine {
        name: "e1000e",
        functions: &[Function {
            address: "0000:01:00.0",
            part: &E1000E,
            group: 5,
            group_siblings: &[],
            has_function_reset: true,
            rows_alone: Ok("available: 0000:01:00.0 bound"),
            set: &ALONE,
        }],
    },
    Machine {
        name: "gen4",
        functions: &[Function {
            address: "0000:01:00.0",
            part: &IGB,
            group: 5,
            group_siblings: &[],
            has_function_reset: true,
            rows_alone: Ok("available: 0000:01:00.0 bound"),
            set: &ALONE_UNCONFIRMED,
        }],
    },
    Machine {
        name: "bridge",
        functions: &[
            Function {
                address: "0000:02:01.0",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.0", "0000:02:02.0", "0000:02:03.0"],
                has_function_reset: false,
                rows_alone: Ok("available: 0000:02:01.0 bound, 0000:02:02.0 implied, 0000:02:03.0 implied"),
                set: &BUS,
            },
            Function {
                address: "0000:02:02.0",
                part: &EDU,
                group: 5,
                group_siblings: &["0000:01:00.0", "0000:02:01.0", "0000:02:03.0"],
                has_function_reset: false,
                rows_alone: Ok("available: 0000:02:01.0 implied, 0000:02:02.0 bound, 0000:02:03.0 implied"),
                set: &BUS,
            },
            Function {
                address: "0000:02:03.0",
                part: &I82559ER,
                group: 5,
                group_siblings: &["0000:01:00.0", "0000:02:01.0", "0000:02:02.0"],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:02:01.0 implied, 0000:02:02.0 implied, 0000:02:03.0 bound"),
                set: &BUS,
            },
        ],
    },
    Machine {
        name: "switch",
        functions: &[
            Function {
                address: "0000:01:00.1",
                part: &EDU,
                group: 5,
                group_siblings: &[
                    "0000:01:00.0",
                    "0000:02:00.0",
                    "0000:02:01.0",
                    "0000:03:00.0",
                    "0000:04:00.0",
                ],
                has_function_reset: false,
                rows_alone: Ok(
                    "blocked: 0000:01:00.0 not owned, 0000:02:00.0 not owned, 0000:03:00.0 not owned, 0000:02:01.0 not owned, 0000:04:00.0 not owned, 0000:01:00.1 bound",
                ),
                set: &BESIDE_SWITCH,
            },
            Function {
                address: "0000:03:00.0",
                part: &EDU,
                group: 5,
                group_siblings: &[
                    "0000:01:00.0",
                    "0000:01:00.1",
                    "0000:02:00.0",
                    "0000:02:01.0",
                    "0000:04:00.0",
                ],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:03:00.0 bound"),
                set: &FIRST_BELOW_SWITCH,
            },
            Function {
                address: "0000:04:00.0",
                part: &E1000E,
                group: 5,
                group_siblings: &[
                    "0000:01:00.0",
                    "0000:01:00.1",
                    "0000:02:00.0",
                    "0000:02:01.0",
                    "0000:03:00.0",
                ],
                has_function_reset: true,
                rows_alone: Ok("available: 0000:04:00.0 bound"),
                set: &SECOND_BELOW_SWITCH,
            },
        ],
    },
    Machine {
        name: "rciep",
        functions: &[Function {
            address: "0000:00:05.0",
            part: &EDU,
            group: 1,
            group_siblings: &[],
            has_function_reset: false,
            rows_alone: Err("ENODEV"),
            set: &NO_SET,
        }],
    },
];
