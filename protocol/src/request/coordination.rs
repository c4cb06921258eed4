// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests that came with version 1.1: subscribing to events, and what a broker says.

use std::time::Duration;

use zerocopy::FromBytes;

use super::ControlRequest;
use crate::extension::{
    AbortCause, AbortReason, AbortRequest, BrokerMessage, DoneRequest, EventKinds, MAX_SET_FUNCTIONS,
    PciAddress, Preparation, PrepareRequest, ResetOutcome, ResetPolicy, SubscribeRequest, read_addresses,
};
use crate::message::Message;
use crate::request_error::RequestError;

impl Message {
    pub(super) fn subscribe(&self) -> Result<ControlRequest, RequestError> {
        let SubscribeRequest { events, poll_ms } = self.payload()?;
        self.check(EventKinds::ALL.contains(events), "events", events.0)?;
        let poll = (poll_ms != 0).then(|| Duration::from_millis(poll_ms.into()));
        Ok(ControlRequest::Subscribe { events, poll })
    }

    pub(super) fn prepare(&self) -> Result<BrokerMessage, RequestError> {
        const HEADER: usize = size_of::<PrepareRequest>();

        let (header, addresses) =
            PrepareRequest::read_from_prefix(&self.body).map_err(|_| self.bad_size(HEADER))?;
        let PrepareRequest { coordination, target, policy, tries_ms, patience_ms, count: number, reserved } =
            header;
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        self.check(count <= MAX_SET_FUNCTIONS, "count", number)?;
        let functions = read_addresses(number, addresses)
            .ok_or_else(|| self.bad_size(HEADER + count * size_of::<PciAddress>()))?;
        self.check(coordination.0 != 0, "coordination", 0_u32)?;
        let policy = ResetPolicy::try_from(policy).map_err(|_| self.bad_field("policy", policy))?;
        self.check(reserved == 0, "reserved", reserved)?;
        Ok(BrokerMessage::Prepare(Preparation {
            coordination,
            target,
            policy,
            tries: Duration::from_millis(tries_ms.into()),
            patience: Duration::from_millis(patience_ms.into()),
            functions,
        }))
    }

    pub(super) fn done(&self) -> Result<BrokerMessage, RequestError> {
        let DoneRequest { coordination, request, outcome, attempts, missing } = self.payload()?;
        self.check(coordination.0 != 0, "coordination", 0_u32)?;
        let outcome = ResetOutcome::try_from(outcome).map_err(|_| self.bad_field("outcome", outcome))?;
        let request = Some(request).filter(|request| request.0 != 0);
        let missing = Some(missing).filter(|missing| !missing.as_str().is_empty());
        Ok(BrokerMessage::Done { coordination, request, outcome, attempts, missing })
    }

    pub(super) fn abort(&self) -> Result<BrokerMessage, RequestError> {
        let payload: AbortRequest = self.payload()?;
        let AbortRequest { coordination, request, reason, errno, .. } = payload;
        let reason = AbortReason::try_from(reason).map_err(|_| self.bad_field("reason", reason))?;
        let cause = AbortCause::decode(reason, &payload).ok_or_else(|| self.bad_field("errno", errno))?;
        let coordination = Some(coordination).filter(|coordination| coordination.0 != 0);
        let request = Some(request).filter(|request| request.0 != 0);
        Ok(BrokerMessage::Abort { coordination, request, cause })
    }
}
