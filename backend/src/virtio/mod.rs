// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio function whose rings the hardware runs for a vhost-user frontend. Its descriptors and buffers are never looked at
//! here: guest memory is where the guest sees it, kicks become doorbells, and interrupts go straight to the frontend.
//!
//! | module | noun |
//! |---|---|
//! | [`capability`], [`transport`], [`device_status`], [`device_config`] | where the function's registers are, and what they do |
//! | [`features`], [`rings`] | what is negotiated, and what a frontend says of its rings |
//! | [`queue_pairs`], [`control_ring`] | how many rings of a network device are in use, and how it is told |
//! | [`course`] | what follows from what the frontend says: a pure state machine |
//! | [`drive`] | doing that to the device |
//! | [`interrupts`], [`kick`], [`doorbell`], [`eventfd`] | from the device to the frontend, and from there to the device |

pub mod capability;
pub mod control_ring;
pub mod course;
pub mod device_config;
pub mod device_status;
pub mod doorbell;
pub mod drive;
pub mod eventfd;
pub mod features;
pub mod interrupts;
pub mod kick;
pub mod queue_pairs;
pub mod rings;
pub mod transport;

pub use self::course::{Action, Course, Wire};
pub use self::device_status::DeviceStatus;
pub use self::doorbell::DoorbellPage;
pub use self::drive::Drive;
pub use self::eventfd::Eventfd;
pub use self::kick::Relay;
pub use self::queue_pairs::QueuePairs;
pub use self::rings::{Base, RingAreas, RingIndex};
pub use self::transport::VirtioFunction;
