// SPDX-License-Identifier: MIT OR Apache-2.0
//! A monitor on the board: its configuration, and the rings that root has mapped for it.

use crate::heard::Ears;
use crate::monitor::Monitor;
use crate::reports::Reports;
use crate::server::MonitorServer;
use trellis_idl::layout::ring;
use trellis_idl::plan::{MAX_VCPUS, MonitorConfig};
use trellis_runtime::RingPage;
use trellis_runtime::event_ring::pages;
use trellis_runtime::ring::page;

/// A server of this monitor, as `trellis_runtime::server!` binds it.
pub type Bound<M> = MonitorServer<'static, M, Reports<&'static RingPage>>;

/// The server of a monitor that is made of its configuration.
pub fn bind<M: Monitor>(make: impl FnOnce(&MonitorConfig<'static>) -> Result<M, &'static str>) -> Result<Bound<M>, &'static str> {
    let config: MonitorConfig<'static> = trellis_runtime::config().map_err(|_| "no configuration")?;
    let ears = Ears::new(&config, |place, vcpus| [0, MAX_VCPUS].map(|from| pages(ring::heard(place) + from, vcpus)));
    Ok(MonitorServer::new(&config, make(&config)?, Reports::new(page(ring::REPORT))).hearing(ears))
}
