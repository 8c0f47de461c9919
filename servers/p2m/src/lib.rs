// SPDX-License-Identifier: MIT OR Apache-2.0
//! p2m: owns a guest's maps. Memory faults come here from the kernel; root and the guest's vcpu server call.
//!
//! [`map`] knows the guest's memory, [`view`] what each view of it shows ([`patch`]: what pages have of their own, [`log`]:
//! which were written), [`watch`] who is told of what they forbid, [`fault`] decides what an access is, [`control`] answers
//! calls.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod control;
pub mod fault;
pub mod log;
pub mod map;
pub mod patch;
pub mod view;
pub mod watch;
#[cfg(test)]
mod fake;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use map::Map;
use trellis_idl::kernel::{Exit, Refusal, WORDS};
use trellis_idl::plan::{DevicePages, MAX_DEVICES, MAX_PLANNED_VIEWS, P2mConfig, Populate, ViewPlan};
use trellis_runtime::event_ring::{EventPage, Tells};
use trellis_runtime::{Reply, Server, Shared, System};
use view::Views;
use watch::Recent;

/// The server.
#[derive(Debug)]
pub struct P2m {
    map: Map,
    populate: Populate,
    /// Guest page of GICv2's virtual CPU interface, which the hardware answers.
    interface: Option<u64>,
    /// Where the guest's own devices are.
    devices: heapless::Vec<DevicePages, MAX_DEVICES>,
    /// Accesses refused since the guest started.
    refused: AtomicU32,
    /// The guest's views.
    views: &'static Shared<Views>,
    /// Those that are there from the start.
    planned: heapless::Vec<ViewPlan, MAX_PLANNED_VIEWS>,
    /// The host map is more than memory that may be used for anything: faults in it ask `views`.
    special: AtomicBool,
    /// Pages that were found to be watched.
    recent: Recent,
    /// What its monitors are told.
    tells: Tells,
}

impl P2m {
    /// The server of this guest; with eager population all of its memory is mapped when this returns. `events` are the rings
    /// for what its monitors are told.
    pub fn start(
        system: &impl System, config: &P2mConfig<'_>, views: &'static Shared<Views>, events: &'static [EventPage],
    ) -> Result<P2m, Refusal> {
        let p2m = P2m {
            map: Map::new(config.first_page, config.pages)?,
            populate: config.populate,
            interface: config.gicv_page,
            devices: config.devices.clone(),
            refused: AtomicU32::new(0),
            views,
            planned: config.view.clone(),
            special: AtomicBool::new(false),
            recent: Recent::new(),
            tells: Tells::new(events, config.vcpus),
        };
        views.lock(system).begin(config.views, config.vcpus);
        p2m.tells.begin();
        p2m.begin(system)?;
        Ok(p2m)
    }

    /// Maps what a guest has from its first instruction on.
    fn begin(&self, system: &impl System) -> Result<(), Refusal> {
        if let Some(page) = self.interface {
            map::map_interface(system, page)?;
        }
        map::map_devices(system, &self.devices)?;
        if self.populate == Populate::Eager {
            self.map.map_all(system)?;
        }
        let mut views = self.views.lock(system);
        for (index, plan) in (1..).zip(&self.planned) {
            self.make_planned(system, &mut views, index, plan)?;
        }
        self.special.store(views.is_host_special(), Ordering::Release);
        Ok(())
    }

    /// Makes a view that the manifest describes.
    fn make_planned(
        &self, system: &impl System, views: &mut Views, index: u64, plan: &ViewPlan,
    ) -> Result<(), Refusal> {
        views.create(system, Some(index), plan.default, plan.shown)?;
        for pages in &plan.pages {
            let (mut first, end) = (pages.first, pages.first.saturating_add(pages.pages));
            while first < end {
                let range = (first, end - first);
                let other = pages.shows.map(|page| page + (first - pages.first));
                let done = views
                    .set_access(system, &self.map, index, range, pages.access)
                    .and_then(|_| views.set_notify(system, &self.map, index, range, pages.notify))
                    .and_then(|done| match other {
                        Some(_) => views.remap(system, &self.map, index, range, other),
                        None => Ok(done),
                    });
                first += done.map_err(|failure| failure.refusal)?;
            }
        }
        Ok(())
    }
}

impl Server for P2m {
    #[inline(always)]
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        self.fault(system, badge, exit)
    }

    fn unwatched(&self, _: &impl System, badge: u64, exit: &Exit) -> Reply {
        watch::allowed(badge, exit)
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        self.control(system, badge, words, 0)
    }

    fn letter(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        self.control(system, badge, words, bytes)
    }
}
