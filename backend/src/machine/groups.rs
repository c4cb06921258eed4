// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset groups as somebody watches them: whether each device's can be reset, and when that changes.

use protocol::extension::{Cookie, Generation, GroupEvent, GroupReason};

use super::Machine;
use crate::reset::group::ResetGroup;
use crate::reset::report;

impl Machine {
    /// How each device's group was when it was last looked at.
    pub fn known_groups(&self) -> Vec<GroupEvent> {
        self.known_groups.iter().map(|(cookie, reason)| self.group_event(*cookie, *reason)).collect()
    }

    /// The groups of which something else is true than was told before.
    pub fn changed_groups(&mut self) -> Vec<GroupEvent> {
        self.have_groups_changed = false;
        let changed = self.look_at_groups();
        changed.into_iter().map(|(cookie, reason)| self.group_event(cookie, reason)).collect()
    }

    /// Whether this process has done something since the groups were looked at.
    pub const fn have_groups_changed(&self) -> bool {
        self.have_groups_changed
    }

    /// Asks the kernel anew, but for devices that are being reset: it would not answer before that is over. A group of
    /// which it tells nothing stays as it was.
    fn look_at_groups(&mut self) -> Vec<(Cookie, GroupReason)> {
        let mut changed = Vec::new();
        for (cookie, device) in self.devices.iter().filter(|(cookie, _)| !self.is_in_reset(**cookie)) {
            let Ok(group) = ResetGroup::of(&device.device) else { continue };
            let reason = report::group_reason(&group);
            if self.known_groups.get(cookie) != Some(&reason) {
                changed.push((*cookie, reason));
            }
        }
        if changed.iter().any(|(cookie, _)| self.known_groups.contains_key(cookie)) {
            self.generation += 1;
        }
        self.known_groups.extend(changed.iter().copied());
        changed
    }

    fn group_event(&self, cookie: Cookie, reason: GroupReason) -> GroupEvent {
        let available = u32::from(reason == GroupReason::Available);
        GroupEvent { generation: Generation(self.generation), cookie, available, reason }
    }
}
