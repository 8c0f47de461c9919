// SPDX-License-Identifier: MIT OR Apache-2.0
//! A capability: a kind, rights and a badge in one word, and the name of an object in another.

use trellis_idl::kernel::{Kind, Refusal, Rights};

/// Kind (bits 0–7), rights (8–15), badge (16–63).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct CapWord(pub u64);

impl CapWord {
    /// Packs one.
    pub const fn new(kind: Kind, rights: Rights, badge: u64) -> Self {
        CapWord(kind as u64 | (rights.0 as u64) << 8 | badge << 16)
    }

    /// What an emptied slot holds: no kind, and since when.
    pub const fn emptied(mark: u64) -> Self {
        CapWord(mark << 8)
    }

    /// Whether it is no capability.
    pub const fn is_empty(self) -> bool {
        self.0 & 0xff == 0
    }

    /// The mark of [`CapWord::emptied`].
    pub const fn mark(self) -> u64 {
        self.0 >> 8
    }

    /// What it allows.
    pub const fn rights(self) -> Rights {
        Rights((self.0 >> 8) as u8)
    }

    /// The badge: 48 bits.
    pub const fn badge(self) -> u64 {
        self.0 >> 16
    }

    /// Whether it is of this kind and allows `need`: one AND and one compare.
    #[inline(always)]
    pub const fn is(self, kind: Kind, need: Rights) -> bool {
        let mask = 0xff | (need.0 as u64) << 8;
        self.0 & mask == kind as u64 | (need.0 as u64) << 8
    }

    /// Why [`CapWord::is`] said no.
    #[cold]
    pub fn why_not(self, kind: Kind) -> Refusal {
        match (self.0 & 0xff) as u8 {
            0 => Refusal::NoCapability,
            found if found == kind as u8 => Refusal::MissingRight,
            _ => Refusal::WrongKind,
        }
    }

    /// The same with a badge, where it has none.
    pub const fn badged(self, badge: u64) -> Self {
        if self.badge() == 0 { CapWord(self.0 | badge << 16) } else { self }
    }

    /// The same with fewer rights; never with more.
    pub const fn shrink(self, keep: Rights) -> Self {
        CapWord(self.0 & !(!(keep.0 as u64) << 8 & 0xff00))
    }
}

/// A capability read out of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cap {
    /// Kind, rights, badge.
    pub word: CapWord,
    /// The object's name.
    pub name: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_only_shrinks() {
        let word = CapWord::new(Kind::Guest, Rights(0b1010), 5);
        assert_eq!(word.shrink(Rights(0xff)), word);
        assert_eq!(word.shrink(Rights(0b0110)).rights(), Rights(0b0010));
        assert_eq!(word.shrink(Rights(0)).badge(), 5);
        assert!(word.is(Kind::Guest, Rights(0b1000)) && !word.is(Kind::Guest, Rights(1)));
        assert_eq!(word.why_not(Kind::Guest), Refusal::MissingRight);
        assert_eq!(word.why_not(Kind::Line), Refusal::WrongKind);
        assert_eq!(CapWord(0).why_not(Kind::Line), Refusal::NoCapability);
    }
}
