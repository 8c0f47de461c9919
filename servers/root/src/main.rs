// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds root to the board.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::layout::ring;
    use trellis_idl::plan::{Part, Plan};
    use trellis_root::events::Events;
    use trellis_root::rules::Kepts;
    use trellis_root::{Board, Root};
    use trellis_runtime::{Once, RingPage, Shared, Svc, log, memory, ring::page};

    trellis_runtime::entry!(main);

    static PLAN: Once<Plan<'static>> = Once::new();
    static EVENTS: Shared<Events> = Shared::new(Events::NONE);
    static RULES: Shared<Kepts> = Shared::new(Kepts::NONE);

    /// What root sees of the machine besides the kernel.
    #[derive(Clone, Copy)]
    struct Virtual;

    impl Board for Virtual {
        fn payload(&self, part: Part) -> Option<&'static [u8]> {
            memory::payload(part.offset, part.bytes)
        }

        fn scratch(&self, offset: u64, bytes: &[u8]) -> bool {
            memory::scratch_write(offset, bytes)
        }

        fn scratch_read(&self, offset: u64, bytes: &mut [u8]) -> bool {
            memory::scratch_read(offset, bytes)
        }

        fn events(&self) -> &'static Shared<Events> {
            &EVENTS
        }

        fn rules(&self) -> &'static Shared<Kepts> {
            &RULES
        }

        fn ring(&self, index: usize) -> &'static RingPage {
            page(index)
        }
    }

    /// The first word: where the plan is in the payload (low half) and how long (high half).
    fn main(first_word: u64) -> ! {
        run(plan(first_word))
    }

    #[inline(never)]
    fn run(plan: &'static Plan<'static>) -> ! {
        let mut root = make(plan);
        if let Err(why) = root.begin(&Svc) {
            panic!("the system cannot be started: {why:?}");
        }
        loop {
            root.step(&Svc);
        }
    }

    // Out of line, each: decoding takes most of the stack, and so does making the system; both give it back.
    #[inline(never)]
    fn plan(first_word: u64) -> &'static Plan<'static> {
        let Some(bytes) = memory::payload(first_word & 0xffff_ffff, first_word >> 32) else { panic!("no plan") };
        match PLAN.get_or_build(&Svc, || postcard::from_bytes(bytes)) {
            Ok(plan) => plan,
            Err(error) => panic!("the plan cannot be read: {error}"),
        }
    }

    #[inline(never)]
    fn make(plan: &'static Plan<'static>) -> Root<'static, Virtual> {
        match Root::make(&Svc, Virtual, plan, |console| log::use_ring(ring::ROOT_LOG, console)) {
            Ok(root) => root,
            Err(why) => panic!("the system cannot be started: {why:?}"),
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("root runs on the board only");
}
