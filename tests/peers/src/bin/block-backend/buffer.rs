// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A buffer in guest memory, in as many pieces as its descriptors are.

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap, ReadVolatile, WriteVolatile,
};

/// Bytes that follow each other in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    address: GuestAddress,
    length: u32,
}

/// A buffer. Drivers may cut it into pieces wherever they like (Virtio 1.3, 2.7.4).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Buffer(Vec<Piece>);

impl Buffer {
    /// Appends a piece.
    pub(crate) fn push(&mut self, address: GuestAddress, length: u32) {
        if length > 0 {
            self.0.push(Piece { address, length });
        }
    }

    /// How long it is, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.0.iter().map(|piece| u64::from(piece.length)).sum()
    }

    /// Its first bytes, and the others; nothing where it has not as many, or ends behind the last address.
    pub(crate) fn split(self, first: u64) -> Option<(Self, Self)> {
        let mut missing = first;
        let (mut before, mut behind) = (Self::default(), Self::default());
        for Piece { address, length } in self.0 {
            let taken = length.min(u32::try_from(missing).unwrap_or(u32::MAX));
            missing -= u64::from(taken);
            before.push(address, taken);
            behind.push(address.checked_add(taken.into())?, length - taken);
        }
        (missing == 0).then_some((before, behind))
    }

    /// Fills it from `source`.
    pub(crate) fn fill<Source: ReadVolatile>(
        &self,
        memory: &GuestMemoryMmap,
        source: &mut Source,
    ) -> Result<(), GuestMemoryError> {
        self.0.iter().try_for_each(|piece| {
            memory.read_exact_volatile_from(piece.address, source, piece.length as usize)
        })
    }

    /// Writes what is in it to `target`.
    pub(crate) fn drain<Target: WriteVolatile>(
        &self,
        memory: &GuestMemoryMmap,
        target: &mut Target,
    ) -> Result<(), GuestMemoryError> {
        self.0
            .iter()
            .try_for_each(|piece| memory.write_all_volatile_to(piece.address, target, piece.length as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(pieces: &[(u64, u32)]) -> Buffer {
        let mut buffer = Buffer::default();
        for (address, length) in pieces {
            buffer.push(GuestAddress(*address), *length);
        }
        buffer
    }

    #[test]
    fn a_buffer_is_split_between_and_inside_its_pieces() {
        let pieces = [(0x1000, 16), (0x3000, 512)];
        let whole = || buffer(&pieces);
        assert_eq!(whole().split(0), Some((Buffer::default(), whole())));
        assert_eq!(whole().split(16), Some((buffer(&pieces[..1]), buffer(&pieces[1..]))));
        let inside = (buffer(&[(0x1000, 16), (0x3000, 4)]), buffer(&[(0x3004, 508)]));
        assert_eq!(whole().split(20), Some(inside));
        assert_eq!(whole().split(528), Some((whole(), Buffer::default())));
    }

    #[test]
    fn a_buffer_is_not_split_behind_its_end() {
        assert_eq!(buffer(&[(0x1000, 16)]).split(17), None);
        assert_eq!(Buffer::default().split(u64::MAX), None);
    }

    #[test]
    fn a_buffer_behind_the_last_address_is_none() {
        assert_eq!(buffer(&[(u64::MAX - 3, 16)]).split(16), None);
    }
}
