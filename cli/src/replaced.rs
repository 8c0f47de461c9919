// SPDX-License-Identifier: MIT OR Apache-2.0
//! A monitor in the place of another, or an irqfwd: what happened, and how long guests waited.

use serde_json::{Value, json};
use trellis_idl::control::{Handed, Part, Replaced};
use trellis_idl::kernel::Refusal;

/// What an answer says of it, if it does.
pub fn of(parts: &[Part]) -> Option<Replaced> {
    parts.iter().find_map(|part| if let Part::Replaced(replaced) = part { Some(*replaced) } else { None })
}

/// As text; `what` begins the first line.
pub fn text(what: &str, replaced: &Replaced) -> String {
    let guests = plural(replaced.guests.into(), "guest is", "guests are");
    let owed = match replaced.owed {
        0 => "no vCPU waited for a verdict meanwhile".into(),
        owed => format!("{} for a verdict meanwhile, and each was asked about again", plural(owed.into(), "vCPU waited", "vCPUs waited")),
    };
    format!("{what}; {guests} watched\n{owed}; nobody was asked for {}\n{}\n", time(replaced), state(replaced))
}

/// The same of irqfwd.
pub fn forward_text(what: &str, replaced: &Replaced) -> String {
    let guests = plural(replaced.guests.into(), "guest has", "guests have");
    format!("{what}; {guests} devices of its\nno interrupt is lost; none that goes through it came for {}\n{}\n", time(replaced), state(replaced))
}

fn state(replaced: &Replaced) -> String {
    match replaced.state {
        Handed::Lost => "what the old one knew is lost".into(),
        Handed::NotWanted => "it begins without what the old one knew".into(),
        Handed::Taken(bytes) => format!("{bytes} bytes of state were handed over"),
        Handed::NotGiven(why) => format!("it handed no state over: {}", refusal(why)),
    }
}

/// As JSON.
pub fn json(monitor: &str, replaced: &Replaced) -> Value {
    let (state, detail) = match replaced.state {
        Handed::Lost => ("lost", Value::Null),
        Handed::NotWanted => ("not wanted", Value::Null),
        Handed::Taken(bytes) => ("taken", json!(bytes)),
        Handed::NotGiven(why) => ("not given", json!(refusal(why))),
    };
    json!({
        "monitor": monitor, "done": true, "guests": replaced.guests, "waited_vcpus": replaced.owed,
        "waited_ticks": replaced.ticks, "clock_hz": replaced.clock_hz, "state": state, "state_detail": detail,
    })
}

fn plural(count: u32, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A kernel's refusal by its name.
pub fn refusal(number: u8) -> String {
    let name = Refusal::ALL.iter().find(|refusal| **refusal as u8 == number);
    name.map_or_else(|| format!("refusal {number}"), |refusal| format!("{refusal:?}"))
}

/// How long nobody was asked, in the unit that suits it.
fn time(replaced: &Replaced) -> String {
    let nanoseconds = u128::from(replaced.ticks) * 1_000_000_000 / u128::from(replaced.clock_hz.max(1));
    match nanoseconds {
        0..10_000 => format!("{nanoseconds} ns"),
        10_000..10_000_000 => format!("{} µs", nanoseconds / 1_000),
        _ => format!("{} ms", nanoseconds / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(owed: u8, ticks: u64, state: Handed) -> Replaced {
        Replaced { server: 3, guests: 1, owed, ticks, clock_hz: 62_500_000, state }
    }

    #[test]
    fn it_is_said_what_became_of_guests_and_of_the_state() {
        let said = text("watchdog was ended and made again", &replaced(2, 6_250, Handed::Lost));
        assert_eq!(said, "watchdog was ended and made again; 1 guest is watched\n2 vCPUs waited for a verdict meanwhile, and each was \
            asked about again; nobody was asked for 100 µs\nwhat the old one knew is lost\n");
        let said = text("swapped", &replaced(0, 1, Handed::NotGiven(Refusal::Unsupported as u8)));
        assert!(said.contains("no vCPU waited") && said.contains("16 ns") && said.contains("Unsupported"), "{said}");
        assert!(text("swapped", &replaced(1, u64::MAX, Handed::Taken(9))).contains("1 vCPU waited for a verdict"));
        let said = forward_text("irqfwd is x now", &replaced(0, 6_250, Handed::Taken(256)));
        assert_eq!(said, "irqfwd is x now; 1 guest has devices of its\nno interrupt is lost; none that goes through it came for 100 µs\n\
            256 bytes of state were handed over\n");
        assert_eq!(json("m", &replaced(1, 5, Handed::Taken(9)))["state_detail"], 9);
    }

    #[test]
    fn a_refusal_that_is_not_known_is_a_number() {
        assert_eq!((refusal(Refusal::Quota as u8).as_str(), refusal(200).as_str()), ("Quota", "refusal 200"));
    }
}
