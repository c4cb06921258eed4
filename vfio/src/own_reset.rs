// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the kernel resets one function, alone or with a bus that is its own.

/// A way to reset one function, as `reset_method` of sysfs names it.
///
/// In the kernel's order of preference, unless an administrator wrote another one there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnReset {
    /// A quirk of the kernel for this very device.
    DeviceSpecific,
    /// The firmware does it.
    Acpi,
    /// A PCI Express function level reset.
    FunctionLevel,
    /// The function level reset of a conventional device (Advanced Features).
    AdvancedFeatures,
    /// To sleep and back, which leaves more behind than the others do.
    PowerManagement,
    /// The slot or bus, where nothing else is.
    Bus,
    /// The same below a CXL port.
    CxlBus,
}

impl OwnReset {
    const ALL: [Self; 7] = [
        Self::DeviceSpecific,
        Self::Acpi,
        Self::FunctionLevel,
        Self::AdvancedFeatures,
        Self::PowerManagement,
        Self::Bus,
        Self::CxlBus,
    ];

    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceSpecific => "device_specific",
            Self::Acpi => "acpi",
            Self::FunctionLevel => "flr",
            Self::AdvancedFeatures => "af_flr",
            Self::PowerManagement => "pm",
            Self::Bus => "bus",
            Self::CxlBus => "cxl_bus",
        }
    }

    /// What `reset_method` lists. A name that is not known here is left out.
    pub fn parse_list(text: &str) -> Vec<Self> {
        let known = |name| Self::ALL.into_iter().find(|method| method.name() == name);
        text.split_whitespace().filter_map(known).collect()
    }

    /// Whether it resets whatever is on the function's bus.
    pub const fn reaches_bus(self) -> bool {
        matches!(self, Self::Bus | Self::CxlBus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_its_order_and_without_what_is_unknown() {
        let listed = OwnReset::parse_list("pm warp flr\n");
        assert_eq!(listed, [OwnReset::PowerManagement, OwnReset::FunctionLevel]);
        assert_eq!(OwnReset::parse_list("\n"), []);
    }

    #[test]
    fn every_way_is_read_back_by_its_name() {
        for method in OwnReset::ALL {
            assert_eq!(OwnReset::parse_list(method.name()), [method]);
        }
    }
}
