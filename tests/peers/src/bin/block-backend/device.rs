// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device: what it offers to the frontend, its configuration, and its rings.
//!
//! The crate ends a ring's thread, for the rest of the session, when a kick is gone before it is read: so it is where a frontend
//! stops a ring right behind a kick and starts it anew while the thread is on its way.

use std::error::Error;
use std::io;
use std::iter;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringState, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Error as RingError, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::image::{Image, SECTOR};
use crate::request::Request;

/// Most entries that a ring may have.
const QUEUE_SIZE: usize = 1024;
/// Most pieces of data in a request: with header and status what fits into a ring of 128 entries, QEMU's default.
const SEGMENTS: u32 = 126;

/// Virtio features, by their bits.
const FEATURES: [u32; 7] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_BLK_SIZE,
];

/// The beginning of `struct virtio_blk_config`; what follows is of features that are not offered, and zero.
#[derive(Debug, FromZeros, Immutable, IntoBytes)]
#[repr(C)]
struct Configuration {
    /// In sectors.
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    /// In bytes.
    blk_size: U32,
    topology: [u8; 8],
    writeback: u8,
    unused: u8,
    num_queues: U16,
}

/// A block device, for one session.
pub(crate) struct BlockDevice {
    /// One for each ring.
    images: Arc<[Mutex<Image>]>,
    /// The guest's memory. The session's handler follows the frontend's table in it.
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

impl BlockDevice {
    pub(crate) fn new(images: Arc<[Mutex<Image>]>, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> Self {
        Self { images, memory }
    }

    fn configuration(&self) -> Configuration {
        let sectors = self.images.first().map_or(0, |image| locked(image, |image| image.sectors()));
        let mut configuration = Configuration::new_zeroed();
        configuration.capacity = sectors.into();
        configuration.seg_max = SEGMENTS.into();
        configuration.blk_size = u32::try_from(SECTOR).unwrap_or(u32::MAX).into();
        configuration.num_queues = u16::try_from(self.images.len()).unwrap_or(u16::MAX).into();
        configuration
    }

    /// Serves what is in a ring. The ring is locked for one request at a time, so that the frontend can stop it between two.
    fn serve(&self, vring: &VringMutex, image: &mut Image) -> Result<(), Box<dyn Error>> {
        vring.disable_notification()?;
        while self.serve_next(&mut vring.get_mut(), image)? {}
        Ok(())
    }

    /// Serves the next request of a ring. Without one it asks for a notification, and is done if none has come until then.
    fn serve_next(&self, ring: &mut VringState, image: &mut Image) -> Result<bool, Box<dyn Error>> {
        if !ring.is_enabled() || !ring.get_queue().ready() {
            return Ok(false);
        }
        let memory = self.memory.memory();
        let queue = ring.get_queue_mut();
        if queue.avail_idx(&*memory, Ordering::Acquire)?.0 == queue.next_avail() {
            return Ok(ring.enable_notification()?);
        }
        let chain = queue.iter(memory.clone())?.next().ok_or(RingError::InvalidAvailRingIndex)?;
        let head = chain.head_index();
        // Nothing is known to be written where the request cannot be understood.
        let written = match Request::parse(&memory, chain) {
            Some(request) => request.carry_out(&memory, image)?,
            None => 0,
        };
        ring.add_used(head, written)?;
        if ring.needs_notification()? {
            ring.signal_used_queue()?;
        }
        Ok(true)
    }
}

/// Does something with an image that no other thread is using.
fn locked<Result>(image: &Mutex<Image>, work: impl FnOnce(&mut Image) -> Result) -> Result {
    work(&mut image.lock().unwrap_or_else(PoisonError::into_inner))
}

impl VhostUserBackend for BlockDevice {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.images.len()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let features = FEATURES.iter().map(|bit| 1 << bit).sum::<u64>();
        features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// The rings have it already.
    fn set_event_idx(&self, _is_enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let configuration = self.configuration();
        let bytes = configuration.as_bytes().iter().copied().chain(iter::repeat(0));
        bytes.skip(offset as usize).take(size as usize).collect()
    }

    /// It is the same memory, changed.
    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.images.len()).map(|queue| 1 << queue).collect()
    }

    /// Without one, a session's threads would never end. The crate leaves its consumer open: a session costs a descriptor for
    /// each ring.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        thread: usize,
    ) -> io::Result<()> {
        let (Some(vring), Some(image)) = (vrings.get(usize::from(event)), self.images.get(thread)) else {
            return Ok(());
        };
        if let Err(error) = locked(image, |image| self.serve(vring, image)) {
            // The thread goes on: the frontend may set the ring up anew.
            eprintln!("block-backend: ring {thread} is broken: {error}");
        }
        Ok(())
    }
}
