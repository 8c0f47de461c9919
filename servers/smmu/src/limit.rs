// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much is told of accesses that were stopped: a device that does nothing else must not take everybody's time.

/// Told of each device in a window; what comes beyond that is counted.
pub const MOST: u32 = 4;
/// Records of all devices in a window, after which nobody listens until it ends.
pub const MOST_EVENTS: u32 = 256;

/// What was told of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limit {
    /// How often in this window.
    told: u32,
    /// So many were not told.
    more: u32,
}

impl Limit {
    /// Another one. Back: whether it is told, and with it how many before it were not.
    pub const fn event(&mut self) -> Option<u32> {
        if self.told >= MOST {
            self.more = self.more.saturating_add(1);
            return None;
        }
        self.told += 1;
        Some(self.take())
    }

    /// The window ends. Back: how many were not told, if there are any: the last of them is told now.
    pub const fn end(&mut self) -> Option<u32> {
        self.told = 0;
        match self.take() {
            0 => None,
            more => Some(more - 1),
        }
    }

    const fn take(&mut self) -> u32 {
        let more = self.more;
        self.more = 0;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_window_are_told_and_all_are_counted() {
        let mut limit = Limit::default();
        let told: Vec<_> = (0..1000).map(|_| limit.event()).collect();
        assert_eq!(told.iter().filter(|one| **one == Some(0)).count(), MOST as usize);
        assert!(told[MOST as usize..].iter().all(Option::is_none));
        assert_eq!(limit.end(), Some(1000 - MOST - 1), "the last one is told, and the others were not");
        assert_eq!((limit.end(), limit.event()), (None, Some(0)), "a window begins anew");
    }
}
