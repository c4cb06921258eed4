// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is pinned, for how long, and who is charged.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::super::locked_memory::Account;
use super::*;

/// A process that lives until its input ends.
fn process() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Ends it, and leaves it to be waited for.
fn end(child: &mut Child) {
    drop(child.stdin.take());
    let id = WaitId::Pid(Pid::from_raw(child.id().cast_signed()).unwrap());
    rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
}

#[test]
fn memory_is_charged_while_a_page_table_holds_it() {
    let (mut host, ioas, device) = Host::attached();
    let file = memory(4 * PAGE);
    host.map(ioas, &file, 0, 4 * PAGE, 0).unwrap();
    assert_eq!(host.charge(), 4 * PAGE);
    host.detach(device);
    assert!(host.locked.is_empty());
    host.attach(device, ioas).unwrap();
    assert_eq!(host.charge(), 4 * PAGE);
    host.unmap(ioas, 0, 4 * PAGE).unwrap();
    assert!(host.locked.is_empty());
}

#[test]
fn a_manual_page_table_holds_memory_without_a_device() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    host.map(ioas, &memory(PAGE), 0, PAGE, 0).unwrap();
    let hwpt = host.hwpt(device, ioas).unwrap();
    assert_eq!(host.charge(), PAGE);
    host.attach(device, hwpt).unwrap();
    host.detach(device);
    assert_eq!(host.charge(), PAGE);
    host.destroy(hwpt).unwrap();
    assert!(host.locked.is_empty());
}

#[test]
fn memory_over_the_limit_is_enomem_and_is_not_charged() {
    let (mut host, ioas, _) = Host::attached();
    host.caller.memory_lock_limit = 4 * PAGE + 1;
    let file = memory(8 * PAGE);
    assert_eq!(host.map(ioas, &file, 0, 5 * PAGE, 0), Err(Errno::NOMEM));
    assert_eq!(host.map(ioas, &file, 0, 3 * PAGE, 0), Ok(0));
    assert_eq!(host.map(ioas, &file, 0, 2 * PAGE, MIB), Err(Errno::NOMEM));
    assert_eq!(host.map(ioas, &file, 0, PAGE, MIB), Ok(MIB));
    assert_eq!(host.charge(), 4 * PAGE);
}

#[test]
fn all_contexts_of_a_user_share_the_limit_and_users_do_not() {
    let (mut host, ioas, _) = Host::attached();
    let file = memory(16 * MIB);
    host.map(ioas, &file, 0, 12 * MIB, 0).unwrap();
    let (mut second, its_ioas, _) = Host::attached();
    std::mem::swap(&mut host.locked, &mut second.locked);
    assert_eq!(second.map(its_ioas, &file, 0, 12 * MIB, 0), Err(Errno::NOMEM));
    second.caller.user = 1001;
    assert_eq!(second.map(its_ioas, &file, 0, 12 * MIB, 0), Ok(0));
    assert_eq!(second.locked.bytes_of_user(1000), 12 * MIB);
    host.context.close(&mut second.locked);
    assert_eq!((second.locked.bytes_of_user(1000), second.charge()), (0, 12 * MIB));
    second.context.close(&mut second.locked);
    assert!(second.locked.is_empty());
}

#[test]
fn what_needs_no_more_memory_is_not_stopped_by_a_limit() {
    let (mut host, ioas, _) = Host::attached();
    let file = memory(8 * PAGE);
    host.caller.memory_lock_limit = 2 * PAGE;
    host.map(ioas, &file, 0, 2 * PAGE, 0).unwrap();
    host.caller.memory_lock_limit = 16 * PAGE;
    host.map(ioas, &file, 0, 8 * PAGE, MIB).unwrap();
    assert_eq!(host.copy((ioas, 0), (ioas, 2 * MIB), 2 * PAGE), Ok(2 * MIB));
}

#[test]
fn who_may_pin_without_limit_is_not_charged() {
    let (mut host, ioas, _) = Host::attached();
    host.caller.may_pin_without_limit = true;
    host.map(ioas, &memory(32 * MIB), 0, 32 * MIB, 0).unwrap();
    assert_eq!(host.charge(), 0);
    assert!(!host.locked.is_empty());
}

#[test]
fn a_process_can_be_charged_in_place_of_its_user() {
    let mut host = Host::new();
    host.caller.may_change_accounting = true;
    host.call(OPTION, &[0, 0, 0], &[1]).unwrap();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    host.attach(device, ioas).unwrap();
    host.map(ioas, &memory(PAGE), 0, PAGE, 0).unwrap();
    assert_eq!(host.charge(), 0);
    assert_eq!(host.locked.bytes_of(Account::Process(host.caller.process)), PAGE);
}

#[test]
fn a_copy_is_charged_once_however_often_and_in_parts() {
    let (mut host, ioas, device) = Host::attached();
    let other = host.ioas();
    host.hwpt(device, other).unwrap();
    let file = memory(8 * PAGE);
    host.map(ioas, &file, 0, 8 * PAGE, 0).unwrap();
    host.copy((ioas, 0), (ioas, MIB), 8 * PAGE).unwrap();
    host.copy((ioas, 2 * PAGE), (other, 0), 3 * PAGE).unwrap();
    assert_eq!(host.charge(), 8 * PAGE);
    host.unmap(ioas, 0, 8 * PAGE).unwrap();
    assert_eq!(host.charge(), 8 * PAGE);
    host.unmap(ioas, MIB, 8 * PAGE).unwrap();
    assert_eq!(host.charge(), 3 * PAGE);
    host.unmap(other, 0, 3 * PAGE).unwrap();
    assert!(host.locked.is_empty());
}

#[test]
fn the_same_file_mapped_twice_is_charged_twice() {
    let (mut host, ioas, _) = Host::attached();
    let file = memory(PAGE);
    host.map(ioas, &file, 0, PAGE, 0).unwrap();
    host.map(ioas, &file, 0, PAGE, PAGE).unwrap();
    assert_eq!(host.charge(), 2 * PAGE);
}

#[test]
fn a_copy_is_charged_to_who_mapped() {
    let mut host = Host::new();
    let (source, target, device) = (host.ioas(), host.ioas(), host.context.add_device(Some(1)));
    host.attach(device, target).unwrap();
    host.map(source, &memory(PAGE), 0, PAGE, 0).unwrap();
    host.caller.user = 1001;
    host.copy((source, 0), (target, 0), PAGE).unwrap();
    assert_eq!((host.locked.bytes_of_user(1000), host.locked.bytes_of_user(1001)), (PAGE, 0));
}

#[test]
fn memory_of_a_process_that_ended_stays_pinned_but_is_not_pinned_again() {
    let mut child = process();
    let (mut host, ioas, device) = Host::attached();
    host.caller.process = child.id().cast_signed();
    let file = memory(2 * PAGE);
    host.map_process(ioas, Some((Arc::clone(&file), 0)), 0x7f00_0000, PAGE, 0).unwrap();
    host.map(ioas, &file, PAGE, PAGE, PAGE).unwrap();
    end(&mut child);
    assert_eq!((page_at(&host, device, 0), page_at(&host, device, PAGE)), (Some(0), Some(1)));

    // As long as a page table holds it, it can be had for another.
    let second = host.context.add_device(Some(2));
    assert!(host.attach(second, ioas).is_ok());
    let copy = host.ioas();
    assert!(host.copy((ioas, 0), (copy, 0), PAGE).is_ok());
    host.detach(device);
    host.detach(second);
    assert_eq!(host.attach(device, ioas), Err(Errno::FAULT));
    child.wait().unwrap();
    assert_eq!(host.attach(device, ioas), Err(Errno::FAULT));

    // A file's pages need nobody.
    host.unmap(ioas, 0, PAGE).unwrap();
    assert!(host.attach(device, ioas).is_ok());
    assert_eq!(page_at(&host, device, PAGE), Some(1));
}

#[test]
fn a_failed_attachment_pins_nothing_of_what_came_before() {
    let mut host = Host::new();
    let (ioas, device) = (host.ioas(), host.context.add_device(Some(1)));
    host.map(ioas, &memory(PAGE), 0, PAGE, 0).unwrap();
    host.map_process(ioas, None, 0, PAGE, MIB).unwrap();
    assert_eq!(host.attach(device, ioas), Err(Errno::FAULT));
    assert!(host.locked.is_empty());
}

#[test]
fn a_file_shortened_after_it_was_pinned_is_found_out_when_it_is_pinned_again() {
    let (mut host, ioas, device) = Host::attached();
    let file = memory(2 * PAGE);
    host.map(ioas, &file, 0, 2 * PAGE, 0).unwrap();
    file.set_len(PAGE).unwrap();
    let second = host.context.add_device(Some(2));
    assert!(host.attach(second, ioas).is_ok());
    host.detach(second);
    host.detach(device);
    assert_eq!(host.attach(device, ioas), Err(Errno::INVAL));
}
