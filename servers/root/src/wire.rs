// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rings between domains: each a page of its own, mapped where it is written and where it is read.

use crate::build::{OWN, READ_WRITE};
use crate::supply::Supply;
use crate::{StartError, Step};
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::{RINGS, ring};
use trellis_runtime::{Domain, System};

/// A domain and one of its ring pages.
pub type End = (Domain, usize);

/// Makes a ring between two domains.
pub fn connect(system: &impl System, supply: &mut Supply, ends: [End; 2]) -> Result<(), StartError> {
    let run = supply.take(system, 1)?;
    for (domain, page) in ends {
        domain.map(system, RINGS + page as u64 * PAGE, run, 0, 1, READ_WRITE).step("map a ring")?;
    }
    Ok(())
}

/// Root's own two rings to console: log and reports.
pub fn root(system: &impl System, supply: &mut Supply, console: Domain) -> Result<(), StartError> {
    connect(system, supply, [(OWN, ring::ROOT_LOG), (console, ring::console_log(0))])?;
    connect(system, supply, [(OWN, ring::ROOT_REPORT), (console, ring::CONSOLE_REPORT)])
}

/// The two rings that every server but console has.
pub fn server(
    system: &impl System, supply: &mut Supply, console: Domain, index: usize, domain: Domain,
) -> Result<(), StartError> {
    connect(system, supply, [(domain, ring::LOG), (console, ring::console_log(index))])?;
    connect(system, supply, [(domain, ring::REPORT), (OWN, ring::root_report(index))])
}

/// A guest's serial port: what it sends and what it receives.
pub fn serial(
    system: &impl System, supply: &mut Supply, console: Domain, guest: usize, vcpu: Domain,
) -> Result<(), StartError> {
    connect(system, supply, [(vcpu, ring::SERIAL_OUT), (console, ring::console_out(guest))])?;
    connect(system, supply, [(vcpu, ring::SERIAL_IN), (console, ring::console_in(guest))])
}
