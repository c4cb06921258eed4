// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel knows about whoever issued a request.

use crate::model::iommufd::Caller;
use crate::model::wire::Sender;

/// What the kernel knows about whoever issued a request.
pub(super) fn caller(Sender { process, user }: Sender) -> Caller {
    const CAP_IPC_LOCK: u32 = 14;
    const CAP_SYS_RESOURCE: u32 = 24;
    let read = |name| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    let (status, limits) = (read("status"), read("limits"));
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities =
        capabilities.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let limit = limit.and_then(|line| line.split_whitespace().next());
    Caller {
        process,
        user,
        may_pin_without_limit: capabilities & (1 << CAP_IPC_LOCK) != 0,
        may_change_accounting: capabilities & (1 << CAP_SYS_RESOURCE) != 0,
        // "unlimited" is no number.
        memory_lock_limit: limit.and_then(|limit| limit.parse().ok()).unwrap_or(u64::MAX),
    }
}
