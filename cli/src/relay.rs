// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between those who connect to the control socket and the board's serial port.
//!
//! Only whole frames of the control channel go to the board, under numbers of our own, so that answers find who asked.
//! So many questions may be open at a time: who asks more waits, and the serial port, and with it the output of guests,
//! never does. Each client is written to by a thread of its own; one that does not read is let go.

use crate::door::Door;
use crate::emulator::Serial;
use crate::frame::{Decoder, Frame, Item};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use trellis_idl::control::{Answer, Head, Part};
use trellis_idl::wire::FrameKind;

/// Most questions that are open at a time: the board's ring holds many more.
const MOST_OPEN: usize = 8;
/// Most clients at a time.
const MOST_CLIENTS: usize = 16;
/// Frames that wait for a client to read them.
const UNREAD: usize = 512;
/// A question that has not been answered by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// A question on its way.
#[derive(Debug)]
struct Open {
    client: u64,
    /// Its number there.
    number: u32,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// By their numbers on the board.
    open: HashMap<u32, Open>,
    clients: HashMap<u64, SyncSender<Vec<u8>>>,
    last_number: u32,
    last_client: u64,
    is_over: bool,
}

#[derive(Debug)]
struct Inside {
    door: Door,
    serial: Serial,
    state: Mutex<State>,
    /// A question was answered.
    room: Condvar,
}

/// The relay; it ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    inside: Arc<Inside>,
}

impl Relay {
    /// Lets clients in.
    pub fn start(door: Door, serial: Serial) -> Relay {
        let inside = Arc::new(Inside { door, serial, state: Mutex::default(), room: Condvar::new() });
        let own = inside.clone();
        thread::spawn(move || own.listen());
        Relay { inside }
    }

    /// A part of an answer came from the board.
    pub fn answer(&self, payload: &[u8]) {
        self.inside.answer(payload);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut state = self.inside.state();
        state.is_over = true;
        // Their threads end with them.
        state.clients.clear();
        drop(state);
        self.inside.room.notify_all();
        self.inside.door.knock();
        self.inside.door.close();
    }
}

impl Inside {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left nothing half-done here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(self: Arc<Self>) {
        loop {
            let stream = self.door.next();
            if self.state().is_over {
                return;
            }
            let Ok(stream) = stream else { thread::sleep(Duration::from_millis(10)); continue };
            if let Some((client, frames)) = self.admit() {
                self.clone().serve(client, frames, stream);
            }
        }
    }

    /// A number for a client, and what it is to be sent; nothing when there are too many.
    fn admit(&self) -> Option<(u64, Receiver<Vec<u8>>)> {
        let mut state = self.state();
        if state.clients.len() >= MOST_CLIENTS || state.is_over {
            return None;
        }
        state.last_client += 1;
        let client = state.last_client;
        let (sender, frames) = sync_channel(UNREAD);
        state.clients.insert(client, sender);
        Some((client, frames))
    }

    /// Two threads for a client: what it sends, and what it is sent.
    fn serve(self: Arc<Self>, client: u64, frames: Receiver<Vec<u8>>, stream: UnixStream) {
        let Ok(mut writing) = stream.try_clone() else { return self.forget(client) };
        thread::spawn(move || {
            for frame in frames {
                if writing.write_all(&frame).is_err() {
                    break;
                }
            }
            // It may be gone already.
            let _ = writing.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            self.hear(client, stream);
            self.forget(client);
        });
    }

    /// The client is gone; what it asked is still answered, and counts until then.
    fn forget(&self, client: u64) {
        self.state().clients.remove(&client);
    }

    fn hear(&self, client: u64, mut stream: UnixStream) {
        let (mut decoder, mut buffer) = (Decoder::default(), [0; 4096]);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let mut items = Vec::new();
            decoder.push(&buffer[..length], &mut items);
            for item in items {
                if let Item::Frame(Frame { kind: FrameKind::Control, payload, .. }) = item
                    && !self.ask(client, &payload)
                {
                    return;
                }
            }
        }
    }

    /// Sends a question on, when there is room for it. False: there is nobody to ask any more.
    fn ask(&self, client: u64, payload: &[u8]) -> bool {
        // Whoever sends less than a head cannot be answered.
        let Ok((head, rest)) = postcard::take_from_bytes::<Head>(payload) else { return true };
        let Some(number) = self.enter(client, head.number) else { return false };
        let frame = under(Head { number, ..head }, rest);
        self.serial.send(&frame).is_ok()
    }

    /// Waits until a question more may be open, and gives it a number.
    fn enter(&self, client: u64, number: u32) -> Option<u32> {
        let mut state = self.state();
        loop {
            if state.is_over || !state.clients.contains_key(&client) {
                return None;
            }
            state.open.retain(|_, open| open.since.elapsed() < PATIENCE);
            if state.open.len() < MOST_OPEN {
                break;
            }
            state = self.room.wait_timeout(state, PATIENCE / 8).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.last_number = state.last_number.wrapping_add(1);
        let own = state.last_number;
        state.open.insert(own, Open { client, number, since: Instant::now() });
        Some(own)
    }

    fn answer(&self, payload: &[u8]) {
        let Ok((head, rest)) = postcard::take_from_bytes::<Head>(payload) else { return };
        let is_last = postcard::from_bytes(payload)
            .is_ok_and(|answer: Answer| matches!(answer.part, Part::Done | Part::Refused(_)));
        let mut state = self.state();
        let Some(open) = state.open.get(&head.number) else { return };
        let (client, number) = (open.client, open.number);
        if is_last {
            state.open.remove(&head.number);
        }
        let frame = under(Head { number, ..head }, rest);
        let reads = state.clients.get(&client).is_none_or(|frames| frames.try_send(frame).is_ok());
        if !reads {
            state.clients.remove(&client);
        }
        drop(state);
        self.room.notify_all();
    }
}

/// A control frame of this head and what stands behind it.
fn under(head: Head, rest: &[u8]) -> Vec<u8> {
    let mut payload = postcard::to_stdvec(&head).unwrap_or_default();
    payload.extend_from_slice(rest);
    Frame { kind: FrameKind::Control, channel: 0, payload }.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::PipeReader;
    use trellis_idl::control::{Ask, VERSION};

    struct Board {
        relay: Relay,
        input: PipeReader,
        decoder: Decoder,
        path: std::path::PathBuf,
        _folder: tempfile::TempDir,
    }

    fn board() -> Board {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let (input, output) = std::io::pipe().expect("a pipe");
        let relay = Relay::start(Door::open(&path).expect("a socket"), Serial::of(output));
        Board { relay, input, decoder: Decoder::default(), path, _folder: folder }
    }

    impl Board {
        fn connect(&self) -> UnixStream {
            UnixStream::connect(&self.path).expect("it listens")
        }

        /// The heads of the next questions on the serial port.
        fn questions(&mut self, count: usize) -> Vec<(Head, Vec<u8>)> {
            let (mut found, mut buffer) = (Vec::new(), [0; 256]);
            while found.len() < count {
                let length = self.input.read(&mut buffer).expect("the relay lives");
                let mut items = Vec::new();
                self.decoder.push(&buffer[..length], &mut items);
                found.extend(items.into_iter().map(|item| match item {
                    Item::Frame(Frame { kind: FrameKind::Control, payload, .. }) => {
                        let (head, rest) = postcard::take_from_bytes(&payload).expect("a head");
                        (head, rest.to_vec())
                    }
                    other => panic!("{other:?} goes to the board"),
                }));
            }
            found
        }

        fn done(&self, number: u32) {
            let answer = Answer { head: Head { version: VERSION, number }, part: Part::Done };
            self.relay.answer(&postcard::to_stdvec(&answer).expect("it encodes"));
        }
    }

    fn question(number: u32) -> Vec<u8> {
        let rest = postcard::to_stdvec(&Ask::Status).expect("it encodes");
        under(Head { version: VERSION, number }, &rest)
    }

    fn answers(stream: &mut UnixStream, count: usize) -> Vec<u32> {
        let (mut decoder, mut items, mut buffer) = (Decoder::default(), Vec::new(), [0; 256]);
        while items.len() < count {
            let length = stream.read(&mut buffer).expect("the relay lives");
            assert!(length > 0, "the relay hung up after {items:?}");
            decoder.push(&buffer[..length], &mut items);
        }
        let head = |item| match item {
            Item::Frame(frame) => postcard::take_from_bytes::<Head>(&frame.payload).expect("a head").0.number,
            Item::Raw(bytes) => panic!("{bytes:?}"),
        };
        items.into_iter().map(head).collect()
    }

    #[test]
    fn answers_find_who_asked_though_both_use_the_same_number() {
        let mut board = board();
        let (mut one, mut other) = (board.connect(), board.connect());
        one.write_all(&question(5)).expect("it is there");
        let first = board.questions(1)[0].0.number;
        other.write_all(&question(5)).expect("it is there");
        let second = board.questions(1)[0].0.number;
        assert_ne!(first, second);
        board.done(second);
        assert_eq!(answers(&mut other, 1), [5]);
        board.done(first);
        assert_eq!(answers(&mut one, 1), [5]);
    }

    #[test]
    fn who_goes_away_in_the_middle_of_a_frame_harms_nobody() {
        let mut board = board();
        let whole = question(1);
        for cut in 1..whole.len() {
            board.connect().write_all(&whole[..cut]).expect("it is there");
        }
        let mut next = board.connect();
        // Neither does one that sends anything else: text, another kind of frame.
        let keys = Frame { kind: FrameKind::Guest, channel: 0, payload: b"reboot\n".to_vec() }.encode();
        next.write_all(&[b"hello\0".as_slice(), &keys, &question(2)].concat()).expect("it is there");
        let (head, _) = board.questions(1)[0].clone();
        board.done(head.number);
        assert_eq!(answers(&mut next, 1), [2]);
    }

    #[test]
    fn who_floods_waits_and_others_are_served_as_answers_come() {
        let mut board = board();
        let mut flood = board.connect();
        let sender = thread::spawn(move || {
            for number in 0..2_000 {
                if flood.write_all(&question(number)).is_err() {
                    break;
                }
            }
            flood
        });
        let first = board.questions(MOST_OPEN);
        assert_eq!(first.len(), MOST_OPEN, "and no more until they are answered");
        let mut other = board.connect();
        other.write_all(&question(9)).expect("it is there");
        let mut open: Vec<u32> = first.iter().map(|(head, _)| head.number).collect();
        for _ in 0..4_000 {
            board.done(open.remove(0));
            open.push(board.questions(1)[0].0.number);
            let state = board.relay.inside.state();
            assert!(state.open.len() <= MOST_OPEN);
            if state.open.values().any(|open| open.number == 9 && open.client == 2) {
                return drop((sender, other));
            }
        }
        panic!("the other one is never asked for");
    }

    #[test]
    fn who_does_not_read_is_let_go_and_nobody_waits_for_it() {
        let mut board = board();
        let mut deaf = board.connect();
        deaf.write_all(&question(1)).expect("it is there");
        let number = board.questions(1)[0].0.number;
        let part = Answer { head: Head { version: VERSION, number }, part: Part::Guest(guest()) };
        let payload = postcard::to_stdvec(&part).expect("it encodes");
        for _ in 0..100_000 {
            board.relay.answer(&payload);
            if board.relay.inside.state().clients.is_empty() {
                return;
            }
        }
        panic!("it is kept");
    }

    fn guest() -> trellis_idl::control::GuestState {
        use trellis_idl::control::{GuestState, Life, Name, VcpuState};
        let vcpus = std::iter::repeat_n(VcpuState { cpu: 1, is_on: true, view: 0 }, 8).collect();
        let name = Name::try_from("web").expect("a short name");
        GuestState { guest: 0, name, life: Life::Runs, reboots: 0, memory_bytes: 1 << 30, views: [1; 2], tables: [1; 2], stopped: 0, vcpus }
    }

    #[test]
    fn with_the_system_clients_end_and_the_socket_is_gone() {
        let Board { relay, path, input, _folder, .. } = board();
        let mut client = UnixStream::connect(&path).expect("it listens");
        // It has been let in when its question is on the wire.
        client.write_all(&question(1)).expect("it is there");
        let mut one = [0];
        (&input).read_exact(&mut one).expect("a byte of it");
        drop(relay);
        assert_eq!(client.read(&mut [0; 9]).unwrap_or(0), 0);
        assert!(!path.exists());
    }
}
