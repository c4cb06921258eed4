// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power states: what the kernel does by itself, and what it does for the user.

use crate::model::function::capability::Capability;
use crate::model::function::registers::capability_id;
use crate::model::function::{Function, LowPower};

impl Function {
    /// The kernel puts a function to sleep that nobody uses.
    pub(super) fn suspend(&mut self) {
        self.write_power_state(Capability::POWER_STATE);
    }

    pub(super) fn resume(&mut self) {
        self.write_power_state(0);
    }

    fn write_power_state(&mut self, state: u16) {
        let Some(start) = self.registers.capability(capability_id::POWER_MANAGEMENT) else { return };
        let control = start + Capability::POWER_CONTROL;
        let value = self.registers.half(control);
        match (state, value & Capability::POWER_STATE) {
            (0, 0) => {}
            // The kernel clears the whole register to wake a function.
            (0, _) => self.registers.write(control, &[0; 2]),
            _ => self.registers.write(control, &(value | state).to_le_bytes()),
        }
    }

    /// What the kernel does to change the power state. Only D0 and D3 exist in these parts.
    pub(super) fn set_power_state(&mut self, state: u16) {
        let was_asleep = self.registers.is_asleep();
        let forgets = self.registers.capability(capability_id::POWER_MANAGEMENT).is_some_and(|start| {
            self.registers.half(start + Capability::POWER_CONTROL) & Capability::NO_SOFT_RESET == 0
        });
        let awake = self.registers.clone();
        match state {
            0 | Capability::POWER_STATE => self.write_power_state(state),
            _ => return,
        }
        let Some(user) = &mut self.user else { return };
        match (was_asleep, self.registers.is_asleep()) {
            (false, true) if forgets => user.asleep = Some(awake),
            (true, false) => {
                if let Some(saved) = user.asleep.take() {
                    self.registers.restore(&saved);
                }
            }
            _ => {}
        }
    }

    /// Any access resumes a function that was suspended at the user's wish.
    pub(super) fn wake(&mut self) {
        if let Some(user) = &mut self.user
            && let Some(LowPower { wakeup: Some(wakeup) }) = &user.low_power
        {
            wakeup.signal();
            user.low_power = None;
        }
    }
}
