// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop's part of jobs: one at a time, who gets its answer, and who waits for their turn.

use protocol::ControlReply;
use protocol::VhostUserHeader;
use protocol::vfio_user::{Reply, VfioUserHeader};
use protocol::vhost_user::DeviceReply;

use super::poller::Token;
use super::{Endpoint, Server};
use crate::face::memory_batch::Answers;
use crate::failure::Failure;
use crate::job::Job;
use crate::machine::Answer;
use crate::memory::TableChange;
use crate::owner::ConnectionId;

/// Who gets the answer of the job in flight, or of a request to the reset engine.
#[derive(Debug)]
pub(super) enum Asker {
    Control(Token, VhostUserHeader),
    /// With what the answer is if the job is done well.
    VfioUser(Token, VfioUserHeader, Reply),
    /// Changes of a client's memory.
    Memory(Token, Answers),
    /// A vhost-user frontend, whose device is taken for it.
    Opening(Token),
    /// A vhost-user frontend, with what the answer is if the job is done well.
    VhostUser(Token, VhostUserHeader, DeviceReply),
    /// A vhost-user frontend, and what is to become of its memory.
    FrontendMemory(Token, VhostUserHeader, Vec<TableChange>),
    /// It was nobody's request.
    Nobody,
}

impl Server {
    /// Hands a job to the worker. The one before must have finished.
    pub(super) fn submit(&mut self, job: Job, asker: Asker) {
        self.in_flight = Some(asker);
        if let Err(error) = self.worker.submit(0, job) {
            log::error!("event=worker-lost reason=\"{error}\"");
            self.is_terminated = true;
        }
    }

    /// Gives the answer to whoever asked, if they are still there.
    pub(super) fn deliver(&mut self, asker: Asker, answer: Result<Answer, Failure>) {
        match asker {
            Asker::Control(token, header) => {
                if let Some(Endpoint::Control(mut peer)) = self.endpoints.remove(&token) {
                    peer.is_served_by_job = false;
                    let reply = answer.map_or_else(ControlReply::from, ControlReply::from);
                    self.reply_control(token, peer, header, &reply);
                }
            }
            Asker::VfioUser(token, header, reply) => {
                if let Some(Endpoint::VfioUser(mut peer)) = self.endpoints.remove(&token) {
                    peer.is_served_by_job = false;
                    self.reply_vfio_user(token, peer, header, answer.map(|_| reply));
                }
            }
            Asker::Memory(token, answers) => {
                if let Some(Endpoint::VfioUser(peer)) = self.endpoints.remove(&token) {
                    match answer {
                        Ok(Answer::Memory(outcomes)) => {
                            self.reply_to_batch(token, peer, answers.with(outcomes));
                        }
                        Ok(_) => self.reply_to_batch(token, peer, answers.with([])),
                        Err(failure) => self.reply_to_batch(token, peer, answers.refused(&failure)),
                    }
                }
            }
            Asker::Opening(token) => self.opened(token, answer),
            Asker::VhostUser(token, header, reply) => self.driven(token, header, reply, answer),
            Asker::FrontendMemory(token, header, changes) => {
                self.memory_changed(token, header, changes, answer);
            }
            Asker::Nobody => {
                if let Err(failure) = answer {
                    log::error!("event=job-failed reason=\"{failure}\"");
                }
            }
        }
    }

    /// Does what resets want done, and what waited for the job that has finished: first what closed connections leave
    /// behind, then requests.
    pub(super) fn proceed(&mut self) {
        self.carry_out_effects();
        while self.in_flight.is_none() {
            if let Some(cookie) = self.left_views.pop_front() {
                if let Some(job) = self.machine.drop_view(cookie) {
                    self.submit(job, Asker::Nobody);
                }
            } else if let Some(connection) = self.next_withdrawal() {
                if let Some(job) = self.machine.withdraw(connection) {
                    self.close_faces_of_removed();
                    self.submit(job, Asker::Nobody);
                }
            } else if let Some(token) = self.waiting.pop_front() {
                self.resume(token);
            } else {
                break;
            }
        }
        self.carry_out_effects();
        self.watch_groups();
    }

    pub(super) fn resume(&mut self, token: Token) {
        match self.endpoints.remove(&token) {
            Some(Endpoint::Control(mut peer)) => match peer.held.take() {
                Some((header, request)) => self.start_control(token, peer, header, request),
                None => self.keep_control(token, peer),
            },
            Some(Endpoint::VfioUser(peer)) if peer.session.batch.is_closed() => {
                self.carry_out_batch(token, peer);
            }
            Some(Endpoint::VfioUser(mut peer)) => match peer.held.take() {
                Some((header, request)) => self.start_vfio_user(token, peer, header, request),
                None => self.keep_vfio_user(token, peer),
            },
            Some(Endpoint::VhostUser(peer)) => self.resume_vhost_user(token, peer),
            Some(other) => drop(self.endpoints.insert(token, other)),
            None => {}
        }
    }

    /// The next closed connection whose devices are at rest.
    fn next_withdrawal(&mut self) -> Option<ConnectionId> {
        for (place, connection) in self.withdrawals.iter().enumerate() {
            let in_reset = self.machine.in_reset_of(*connection);
            if in_reset.is_empty() {
                return self.withdrawals.remove(place);
            }
            // Perhaps the kernel puts the reset off for who waits for just these devices.
            for cookie in in_reset {
                self.machine.want_back(cookie);
            }
        }
        None
    }
}
