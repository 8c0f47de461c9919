// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rings between domains: each a page of its own, mapped where it is written and where it is read.

use crate::build::{OWN, READ_WRITE};
use crate::supply::Supply;
use crate::{StartError, Step};
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::{RINGS, ring};
use trellis_idl::plan::GuestPlan;
use trellis_runtime::{Domain, Frames, System};

/// A domain and one of its ring pages.
pub type End = (Domain, usize);

/// Makes a ring between two domains.
pub fn connect(system: &impl System, supply: &mut Supply, ends: [End; 2]) -> Result<(), StartError> {
    let run = supply.take(system, 1)?;
    for (domain, page) in ends {
        map(system, domain, page, run)?;
    }
    Ok(())
}

/// Root's own rings to console: log, reports and answers; and the one of what the host asks.
pub fn root(system: &impl System, supply: &mut Supply, console: Domain) -> Result<(), StartError> {
    connect(system, supply, [(OWN, ring::ROOT_LOG), (console, ring::console_log(0))])?;
    connect(system, supply, [(OWN, ring::ROOT_REPORT), (console, ring::CONSOLE_REPORT)])?;
    connect(system, supply, [(OWN, ring::ROOT_ASKED), (console, ring::CONSOLE_ASKED)])?;
    connect(system, supply, [(OWN, ring::ROOT_ANSWER), (console, ring::CONSOLE_ANSWER)])
}

/// The rings of a guest's servers. They stay when the servers are made again: the other ends are in use.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Log and reports of p2m.
    p2m: [Frames; 2],
    /// Log and reports of vcpu; what the guest's serial port sends, and receives.
    vcpu: [Frames; 4],
}

/// The rings of guest `index` of the plan, with their ends in console and root.
pub fn rings(
    system: &impl System, supply: &mut Supply, console: Domain, index: usize, guest: &GuestPlan<'_>,
) -> Result<Rings, StartError> {
    let mut ring = |domain: Domain, page: usize| {
        let run = supply.take(system, 1)?;
        map(system, domain, page, run)?;
        Ok(run)
    };
    let (p2m, vcpu) = (usize::from(guest.p2m), usize::from(guest.vcpu));
    Ok(Rings {
        p2m: [ring(console, ring::console_log(p2m))?, ring(OWN, ring::root_report(p2m))?],
        vcpu: [
            ring(console, ring::console_log(vcpu))?,
            ring(OWN, ring::root_report(vcpu))?,
            ring(console, ring::console_out(index))?,
            ring(console, ring::console_in(index))?,
        ],
    })
}

/// The log and the reports of a server that belongs to no guest. They stay when it is made again.
pub type Pair = [Frames; 2];
/// The same of one half of a monitor, and what it was told of.
pub type Trio = [Frames; 3];

/// The rings of a half of the monitor `number` of the plan, which has this place among monitors.
pub fn trio(
    system: &impl System, supply: &mut Supply, console: Domain, number: usize, (place, half): (usize, usize),
) -> Result<Trio, StartError> {
    let trio = [supply.take(system, 1)?, supply.take(system, 1)?, supply.take(system, 1)?];
    let ends = match half {
        0 => [ring::console_log(number), ring::root_report(number)],
        _ => [ring::console_second(place), ring::root_second(place)],
    };
    map(system, console, ends[0], trio[0])?;
    map(system, OWN, ends[1], trio[1])?;
    map(system, OWN, ring::root_seen(place, half), trio[2])?;
    Ok(trio)
}

/// A monitor's ends of them.
pub fn attach_trio(system: &impl System, [log, reports, seen]: &Trio, domain: Domain) -> Result<(), StartError> {
    attach_pair(system, &[*log, *reports], domain)?;
    map(system, domain, ring::SEEN, *seen)
}

/// The rings of server `number` of the plan, with their ends in console and root.
pub fn pair(system: &impl System, supply: &mut Supply, console: Domain, number: usize) -> Result<Pair, StartError> {
    let pair = [supply.take(system, 1)?, supply.take(system, 1)?];
    map(system, console, ring::console_log(number), pair[0])?;
    map(system, OWN, ring::root_report(number), pair[1])?;
    Ok(pair)
}

/// The server's ends of them.
pub fn attach_pair(system: &impl System, pair: &Pair, domain: Domain) -> Result<(), StartError> {
    map(system, domain, ring::LOG, pair[0])?;
    map(system, domain, ring::REPORT, pair[1])
}

/// The servers' ends.
pub fn attach(system: &impl System, rings: &Rings, p2m: Domain, vcpu: Domain) -> Result<(), StartError> {
    let pages = [ring::LOG, ring::REPORT, ring::SERIAL_OUT, ring::SERIAL_IN];
    let ends = |domain: Domain, runs: &[Frames]| {
        pages.iter().zip(runs).try_for_each(|(page, run)| map(system, domain, *page, *run))
    };
    ends(p2m, &rings.p2m)?;
    ends(vcpu, &rings.vcpu)
}

fn map(system: &impl System, domain: Domain, page: usize, run: Frames) -> Result<(), StartError> {
    domain.map(system, RINGS + page as u64 * PAGE, run, 0, 1, READ_WRITE).step("map a ring")
}
