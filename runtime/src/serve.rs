// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serve loop: what the kernel hands over goes to the [`Server`], what it says goes back.

#[cfg(target_os = "none")]
use crate::svc::{Asked, Svc};
use crate::system::{Reply, Server, System};
#[cfg(target_os = "none")]
use trellis_idl::kernel::{Answer, Refusal};
use trellis_idl::kernel::{BADGE_BITS, Exit, WORDS};
use trellis_idl::layout::badge as badges;

/// Asks the server: the badge says whether a vCPU stopped or somebody called.
#[inline(always)]
pub fn dispatch(server: &impl Server, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
    if badges::kind(badge) == badges::EXIT {
        server.exit(system, badge, &Exit::from_words(words))
    } else {
        ask(server, system, badge, words)
    }
}

/// A call: what stands above the badge says how much of the message buffer came along.
fn ask(server: &impl Server, system: &impl System, x0: u64, words: [u64; WORDS]) -> Reply {
    let badge = x0 & ((1 << BADGE_BITS) - 1);
    match x0 >> BADGE_BITS {
        0 => server.call(system, badge, words),
        bytes => server.letter(system, badge, words, bytes as usize),
    }
}

/// Serves for ever.
///
/// An answer that the kernel refuses (a forward to nobody, bits that it does not know) stops the vCPU that waits for it
/// or hands its caller zeroes, and is logged: going on would leave the vCPU in a state that nobody chose.
///
/// The words stay in registers from the kernel through an inlined `Server::exit` and back: what would take their
/// address (calls, refusals) is kept out of line.
#[cfg(target_os = "none")]
pub fn serve<S: Server>(server: &S) -> ! {
    let system = Svc;
    let mut asked = system.reply_and_wait(0, [0; WORDS]);
    'serving: loop {
        let Asked { badge, words } = asked;
        let reply = 'rare: {
            if badges::kind(badge) == badges::EXIT {
                asked = match server.exit(&system, badge, &Exit::from_words(words)) {
                    Reply::Value(answer, value) => system.reply_with_value(answer.0, value),
                    Reply::Exit(answer, words) => system.reply_and_wait(answer.0, words),
                    Reply::Forward(portal, words) => system.forward(portal, words),
                    Reply::Watched(session, words) => match system.forward(session, words) {
                        // The words are where they were: to keep them elsewhere as well would cost every exit.
                        back if back.refusal() == Some(Refusal::Gone) => break 'rare unwatched(server, badge, back.words),
                        back => back,
                    },
                    Reply::Call(words) | Reply::Letter(words, _) => system.reply_and_wait(0, words),
                };
            } else if asked.refusal().is_some() {
                asked = after(asked);
            } else {
                break 'rare called(server, badge, words);
            }
            continue 'serving;
        };
        asked = match reply {
            Reply::Value(answer, value) => system.reply_with_value(answer.0, value),
            Reply::Exit(answer, words) => system.reply_and_wait(answer.0, words),
            Reply::Call(words) => system.reply_and_wait(0, words),
            Reply::Letter(words, bytes) => system.reply_with_buffer(0, words, bytes),
            // A call is no event: what is refused is answered as `after` says.
            Reply::Forward(portal, words) | Reply::Watched(portal, words) => system.forward(portal, words),
        };
    }
}

/// Nobody need be asked: the server decides.
#[cfg(target_os = "none")]
#[cold]
#[inline(never)]
fn decides<S: Server>(server: &S, badge: u64, words: &[u64; WORDS], reply: &mut Reply) {
    *reply = server.unwatched(&Svc, badge, &Exit::from_words(*words));
}

/// Serves a call.
#[cfg(target_os = "none")]
#[inline(never)]
fn serves<S: Server>(server: &S, badge: u64, words: &[u64; WORDS], reply: &mut Reply) {
    *reply = ask(server, &Svc, badge, *words);
}

/// What these do has the words' address: it gets a copy, so that they are in memory on this way and on no other.
#[cfg(target_os = "none")]
#[inline(always)]
fn unwatched<S: Server>(server: &S, badge: u64, [a, b, c, d, e, f, g, h, i, j]: [u64; WORDS]) -> Reply {
    let mut reply = Reply::Call([0; WORDS]);
    decides(server, badge, &[a, b, c, d, e, f, g, h, i, j], &mut reply);
    reply
}

/// See [`unwatched`].
#[cfg(target_os = "none")]
#[inline(always)]
fn called<S: Server>(server: &S, badge: u64, [a, b, c, d, e, f, g, h, i, j]: [u64; WORDS]) -> Reply {
    let mut reply = Reply::Call([0; WORDS]);
    serves(server, badge, &[a, b, c, d, e, f, g, h, i, j], &mut reply);
    reply
}

/// The way on after a refused answer.
#[cfg(target_os = "none")]
#[inline(always)]
fn after(refused: Asked) -> Asked {
    note(refused.badge);
    let asked = Svc.reply_and_wait(Answer::STOP.0, [0; WORDS]);
    if asked.refusal().is_none() {
        return asked;
    }
    // The one that waits is a thread: it has no bits to set.
    let asked = Svc.reply_and_wait(0, [0; WORDS]);
    if asked.refusal().is_some() {
        nothing_left(asked.badge);
    }
    asked
}

#[cfg(target_os = "none")]
#[cold]
#[inline(never)]
fn note(x0: u64) {
    crate::log!("answer refused: {:?}", Refusal::from_register(x0));
}

#[cfg(target_os = "none")]
#[cold]
#[inline(never)]
fn nothing_left(x0: u64) -> ! {
    panic!("nothing can be answered: {:?}", Refusal::from_register(x0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::kernel::{Answer, Op, Refusal};

    struct Nothing;
    impl System for Nothing {
        fn invoke(&self, _: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
            Err(Refusal::NoOperation)
        }
        fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
            Err(Refusal::NoOperation)
        }
        fn wait(&self, _: u64, _: u64) -> u64 {
            0
        }
        fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
            f(&mut [0; 4096])
        }
    }

    struct Echo;
    impl Server for Echo {
        fn exit(&self, _: &impl System, badge: u64, exit: &Exit) -> Reply {
            Reply::Exit(Answer::ADVANCE, [badge, exit.physical, 0, 0, 0, 0, 0, 0, 0, 0])
        }
        fn call(&self, _: &impl System, _: u64, words: [u64; WORDS]) -> Reply {
            Reply::Call(words)
        }
    }

    #[test]
    fn the_badge_tells_an_exit_from_a_call() {
        let words = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        assert_eq!(
            dispatch(&Echo, &Nothing, badges::EXIT | 3, words),
            Reply::Exit(Answer::ADVANCE, [3, 3, 0, 0, 0, 0, 0, 0, 0, 0])
        );
        assert_eq!(dispatch(&Echo, &Nothing, badges::ROOT, words), Reply::Call(words));
        assert_eq!(dispatch(&Echo, &Nothing, badges::VCPU_SERVER | 7, words), Reply::Call(words));
    }
}
