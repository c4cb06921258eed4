// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device's client has armed of its interrupts.
//!
//! The kernel has the eventfds and signals them; nothing passes through here. They are kept to be given to the kernel once
//! more: when a client wants more messages than the kernel can add, and after a reset that the client has not asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use vfio::irq::{IrqData, IrqSet};
use vfio::{CallError, Device, IrqAction, IrqIndex, Object};

/// An eventfd, as long as somebody may need it.
type Eventfd = Arc<OwnedFd>;

/// A client's `SET_IRQS`, with the eventfds that came with it.
#[derive(Debug)]
pub struct IrqChange {
    /// Which interrupts.
    pub index: IrqIndex,
    /// First vector.
    pub start: u32,
    /// What to do.
    pub action: IrqAction,
    /// With what, and for how many vectors.
    pub data: IrqChangeData,
}

/// What comes with it.
#[derive(Debug)]
pub enum IrqChangeData {
    /// Nothing, for this many vectors.
    None(u32),
    /// A boolean for each vector.
    Bools(Vec<u8>),
    /// An eventfd for each vector; `None` takes a vector's eventfd away.
    Eventfds(Vec<Option<Arc<OwnedFd>>>),
}

impl IrqChange {
    fn issue(&self, device: &Device) -> Result<(), CallError> {
        let Self { index, start, action, .. } = *self;
        let eventfds;
        let data = match &self.data {
            IrqChangeData::None(count) => IrqData::None(*count),
            IrqChangeData::Bools(bools) => IrqData::Bool(bools),
            IrqChangeData::Eventfds(fds) => {
                eventfds = fds.iter().map(|fd| borrowed(fd.as_ref())).collect::<Vec<_>>();
                IrqData::Eventfd(&eventfds)
            }
        };
        device.set_irqs(&IrqSet { index, start, action, data })
    }
}

/// What is armed.
#[derive(Clone, Debug, Default)]
pub struct Interrupts {
    own: Own,
    /// What the host has to tell, as far as the client hears it. The kernel has one eventfd for each: this is the client's.
    heard: BTreeSet<IrqIndex>,
}

/// The device's own interrupts: one kind at a time.
#[derive(Clone, Debug, Default)]
enum Own {
    #[default]
    Off,
    Pin(Pin),
    Messages(Messages),
}

/// `INTx`.
#[derive(Clone, Debug, Default)]
struct Pin {
    /// Told when the pin is asserted.
    trigger: Option<Eventfd>,
    /// Written to when the client has served the interrupt.
    unmask: Option<Eventfd>,
}

/// MSI or MSI-X.
#[derive(Clone, Debug)]
struct Messages {
    index: IrqIndex,
    /// How many they were when they were turned on. The device may use all of them, so they are never more than the client
    /// has asked for.
    count: u32,
    /// By vector; at most as many as the device has, 2048.
    eventfds: BTreeMap<u32, Eventfd>,
}

impl Interrupts {
    /// Has the kernel do what the client wants, and remembers what is armed then.
    ///
    /// # Errors
    ///
    /// The kernel's: what was armed before is armed still, or off if even that fails. `EINVAL` also for firing or disabling what
    /// the client has not armed.
    pub fn change(&mut self, device: &Device, change: IrqChange) -> Result<(), CallError> {
        let IrqChange { index, start, action, ref data } = change;
        match (index, action, data) {
            (IrqIndex::Msi | IrqIndex::Msix, IrqAction::Trigger, IrqChangeData::Eventfds(eventfds)) => {
                return self.set_messages(device, index, start, eventfds);
            }
            // What the kernel has there is ours.
            (IrqIndex::Err | IrqIndex::Req, _, IrqChangeData::None(_) | IrqChangeData::Bools(_))
                if !self.hears(index) =>
            {
                return Err(CallError {
                    call: "VFIO_DEVICE_SET_IRQS",
                    object: Object::Device(device.address()),
                    errno: Errno::INVAL,
                });
            }
            _ => change.issue(device)?,
        }
        self.note(change);
        Ok(())
    }

    /// Takes note of what the kernel has done, unless it was about messages and their eventfds.
    fn note(&mut self, change: IrqChange) {
        let IrqChange { index, action, data, .. } = change;
        let first = |eventfds: Vec<_>| eventfds.into_iter().next().flatten();
        match (index, action, data) {
            (IrqIndex::Err | IrqIndex::Req, _, IrqChangeData::Eventfds(eventfds)) => {
                if first(eventfds).is_some() {
                    self.heard.insert(index);
                } else {
                    self.heard.remove(&index);
                }
            }
            (IrqIndex::Err | IrqIndex::Req, _, IrqChangeData::None(0)) => drop(self.heard.remove(&index)),
            (_, IrqAction::Trigger, IrqChangeData::None(0)) => self.own = Own::Off,
            (IrqIndex::Intx, IrqAction::Trigger, IrqChangeData::Eventfds(eventfds)) => {
                let trigger = first(eventfds);
                match &mut self.own {
                    Own::Pin(pin) => pin.trigger = trigger,
                    own => *own = Own::Pin(Pin { trigger, unmask: None }),
                }
            }
            (IrqIndex::Intx, IrqAction::Unmask, IrqChangeData::Eventfds(eventfds)) => {
                if let Own::Pin(pin) = &mut self.own {
                    pin.unmask = first(eventfds);
                }
            }
            _ => {}
        }
    }

    /// Gives messages their eventfds, and turns them on if they are off.
    ///
    /// A client tells of many vectors by several changes. Where the kernel cannot add vectors to those that messages were
    /// turned on with, they are turned off, and on again with more.
    fn set_messages(
        &mut self,
        device: &Device,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<Eventfd>],
    ) -> Result<(), CallError> {
        let end = start.saturating_add(u32::try_from(eventfds.len()).unwrap_or(u32::MAX));
        let present = match &self.own {
            Own::Messages(present) if present.index == index => present,
            _ => {
                let messages = Messages::new(index, end).with(start, eventfds);
                messages.tell(device, start..end)?;
                self.own = Own::Messages(messages);
                return Ok(());
            }
        };
        let mut next = present.clone().with(start, eventfds);
        let is_turned_on_anew = end > present.count && has_fixed_vectors(device, index, end)?;
        let outcome = if is_turned_on_anew {
            next.count = end;
            device.set_irqs(&IrqSet::disable(index)).and_then(|()| next.arm(device))
        } else {
            next.tell(device, start..end)
        };
        let Err(error) = outcome else {
            self.own = Own::Messages(next);
            return Ok(());
        };
        // The kernel has taken away all that was told together.
        let put_back =
            if is_turned_on_anew { present.arm(device) } else { present.tell_each(device, start..end) };
        if let Err(CallError { call, errno, .. }) = put_back {
            log::error!(
                "event=interrupts-lost device={} call={call} errno={}",
                device.address(),
                errno.raw_os_error()
            );
            let _ = device.set_irqs(&IrqSet::disable(index));
            self.own = Own::Off;
        }
        Err(error)
    }

    /// Whether messages are on.
    pub const fn has_messages(&self) -> bool {
        matches!(self.own, Own::Messages(_))
    }

    /// Whether the client hears what the host has to tell.
    pub fn hears(&self, index: IrqIndex) -> bool {
        self.heard.contains(&index)
    }

    /// Takes note that messages are off, as after a reset. A pin is armed all the same: clients count on that.
    pub fn forget_messages(&mut self) {
        if self.has_messages() {
            self.own = Own::Off;
        }
    }

    /// Takes the device's own interrupts down.
    pub fn disarm(&self, device: &Device) -> Result<(), CallError> {
        let index = match &self.own {
            Own::Off => return Ok(()),
            Own::Pin(_) => IrqIndex::Intx,
            Own::Messages(messages) => messages.index,
        };
        match device.set_irqs(&IrqSet::disable(index)) {
            // It is down already, or whoever holds a copy of the descriptor was first.
            Err(error) if error.errno == Errno::INVAL => Ok(()),
            result => result,
        }
    }

    /// Arms the device's own interrupts, which are down, as they were.
    pub fn arm(&self, device: &Device) -> Result<(), CallError> {
        match &self.own {
            Own::Off => Ok(()),
            Own::Pin(pin) => pin.arm(device),
            Own::Messages(messages) => messages.arm(device),
        }
    }

    /// Arms the pin, which is down, if that is what was armed.
    pub fn arm_pin(&self, device: &Device) -> Result<(), CallError> {
        if let Own::Pin(pin) = &self.own { pin.arm(device) } else { Ok(()) }
    }
}

impl Pin {
    fn arm(&self, device: &Device) -> Result<(), CallError> {
        let give = |action, eventfd: Option<&Eventfd>| {
            let data = [borrowed(eventfd)];
            let set = IrqSet { index: IrqIndex::Intx, start: 0, action, data: IrqData::Eventfd(&data) };
            device.set_irqs(&set)
        };
        give(IrqAction::Trigger, self.trigger.as_ref())?;
        self.unmask.as_ref().map_or(Ok(()), |unmask| give(IrqAction::Unmask, Some(unmask)))
    }
}

impl Messages {
    const fn new(index: IrqIndex, count: u32) -> Self {
        Self { index, count, eventfds: BTreeMap::new() }
    }

    /// The vectors from `start` on have these eventfds.
    fn with(mut self, start: u32, eventfds: &[Option<Eventfd>]) -> Self {
        for (vector, eventfd) in (start..).zip(eventfds) {
            match eventfd {
                Some(eventfd) => self.eventfds.insert(vector, Arc::clone(eventfd)),
                None => self.eventfds.remove(&vector),
            };
        }
        self
    }

    /// Turns them on, as many as they were.
    fn arm(&self, device: &Device) -> Result<(), CallError> {
        self.tell(device, 0..self.count)?;
        self.tell_each(device, self.count..u32::MAX)
    }

    /// Tells the kernel the eventfds of those of these vectors that have one.
    fn tell_each(&self, device: &Device, vectors: Range<u32>) -> Result<(), CallError> {
        let mut armed = self.eventfds.range(vectors);
        armed.try_for_each(|(vector, _)| self.tell(device, *vector..vector + 1))
    }

    /// Tells the kernel the eventfds of some vectors.
    fn tell(&self, device: &Device, vectors: Range<u32>) -> Result<(), CallError> {
        let start = vectors.start;
        let eventfds: Vec<_> = vectors.map(|vector| borrowed(self.eventfds.get(&vector))).collect();
        let data = IrqData::Eventfd(&eventfds);
        device.set_irqs(&IrqSet { index: self.index, start, action: IrqAction::Trigger, data })
    }
}

/// Whether the device has so many vectors, but the kernel cannot add them while messages are on.
fn has_fixed_vectors(device: &Device, index: IrqIndex, count: u32) -> Result<bool, CallError> {
    let info = device.irq_info(index)?;
    Ok(info.is_fixed() && count <= info.count)
}

fn borrowed(eventfd: Option<&Eventfd>) -> Option<BorrowedFd<'_>> {
    eventfd.map(AsFd::as_fd)
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn fresh() -> Eventfd {
        Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    /// What is armed after the kernel has accepted these.
    fn after(changes: impl IntoIterator<Item = (IrqIndex, IrqAction, IrqChangeData)>) -> Interrupts {
        let mut interrupts = Interrupts::default();
        for (index, action, data) in changes {
            interrupts.note(IrqChange { index, start: 0, action, data });
        }
        interrupts
    }

    fn given(eventfd: Option<Eventfd>) -> IrqChangeData {
        IrqChangeData::Eventfds(vec![eventfd])
    }

    fn pin(interrupts: &Interrupts) -> Option<(bool, bool)> {
        let Own::Pin(pin) = &interrupts.own else { return None };
        Some((pin.trigger.is_some(), pin.unmask.is_some()))
    }

    #[test]
    fn a_pin_is_kept_with_what_unmasks_it() {
        let armed = || (IrqIndex::Intx, IrqAction::Trigger, given(Some(fresh())));
        let unmasked = || (IrqIndex::Intx, IrqAction::Unmask, given(Some(fresh())));
        assert_eq!(pin(&after([armed()])), Some((true, false)));
        assert_eq!(pin(&after([armed(), unmasked()])), Some((true, true)));
        assert_eq!(pin(&after([armed(), unmasked(), armed()])), Some((true, true)), "another eventfd");
        let disabled = (IrqIndex::Intx, IrqAction::Trigger, IrqChangeData::None(0));
        assert_eq!(pin(&after([armed(), unmasked(), disabled])), None);
    }

    #[test]
    fn a_pin_that_loses_its_eventfd_is_not_off() {
        let armed = (IrqIndex::Intx, IrqAction::Trigger, given(Some(fresh())));
        let without = (IrqIndex::Intx, IrqAction::Trigger, given(None));
        assert_eq!(pin(&after([armed, without])), Some((false, false)));
    }

    #[test]
    fn unmasking_by_eventfd_arms_nothing() {
        assert_eq!(pin(&after([(IrqIndex::Intx, IrqAction::Unmask, given(None))])), None);
    }

    #[test]
    fn messages_that_are_fired_are_on_and_those_that_are_disabled_are_off() {
        let on =
            || Interrupts { own: Own::Messages(Messages::new(IrqIndex::Msi, 1)), ..Interrupts::default() };
        let noted = |data| {
            let mut interrupts = on();
            interrupts.note(IrqChange { index: IrqIndex::Msi, start: 0, action: IrqAction::Trigger, data });
            interrupts.has_messages()
        };
        assert!(noted(IrqChangeData::None(1)));
        assert!(noted(IrqChangeData::Bools(vec![1])));
        assert!(!noted(IrqChangeData::None(0)));
    }

    #[test]
    fn a_client_hears_of_the_host_from_when_it_arms_that_to_when_it_takes_it_back() {
        let armed = || (IrqIndex::Err, IrqAction::Trigger, given(Some(fresh())));
        let fired = (IrqIndex::Err, IrqAction::Trigger, IrqChangeData::None(1));
        assert!(after([armed(), fired]).hears(IrqIndex::Err));
        assert!(!after([armed()]).hears(IrqIndex::Req));
        for taken_back in [given(None), IrqChangeData::None(0)] {
            let interrupts = after([armed(), (IrqIndex::Err, IrqAction::Trigger, taken_back)]);
            assert!(!interrupts.hears(IrqIndex::Err));
        }
    }

    #[test]
    fn vectors_get_and_lose_their_eventfds_one_by_one() {
        let messages = Messages::new(IrqIndex::Msix, 3).with(0, &[Some(fresh()), None, Some(fresh())]);
        let messages = messages.with(5, &[Some(fresh())]).with(0, &[None, Some(fresh())]);
        assert_eq!(messages.eventfds.keys().copied().collect::<Vec<_>>(), [1, 2, 5]);
    }
}
