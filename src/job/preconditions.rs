//! What must be so before a job is made: the devices fit each other and the filters (SPEC O-6), and no other job has those.

use crate::device::{Device, Kind, Limits};
use crate::engine::SideInfo;
use crate::error::{Errno, Error, Result};
use crate::filter::{Claim, Core as FilterCore, Filter};
use std::sync::Arc;

/// The filters that no other job may have meanwhile: the one that is copied, and the one that is to be replaced.
pub(super) struct Claims {
    pub(super) own: Claim,
    pub(super) replaced: Option<Claim>,
}

impl Claims {
    pub(super) fn take(filter: &Filter, replaces: Option<&Filter>) -> Result<Self> {
        let busy = |whose: &str| {
            Error::new(Errno::EBUSY, format!("{whose} filter has a job already: free that first"))
        };
        if replaces.is_some_and(|other| Arc::ptr_eq(other.core(), filter.core())) {
            return Err(Error::invalid("replaces: is the job's own filter; leave it out to switch that one"));
        }
        let own = Claim::take(filter.core()).ok_or_else(|| busy("the"))?;
        let replaced = replaces
            .map(|other| Claim::take(other.core()).ok_or_else(|| busy("replaces: that")))
            .transpose()?;
        Ok(Self { own, replaced })
    }

    /// The filters are free. What is returned is to be dropped without a lock.
    pub(super) fn release(self) -> (Arc<FilterCore>, Option<Arc<FilterCore>>) {
        (self.own.release(), self.replaced.map(Claim::release))
    }
}

/// SPEC O-6.
pub(super) fn check_devices(
    filter: &Filter,
    source: &Device,
    target: &Device,
    replaces: Option<&Filter>,
) -> Result<()> {
    if source.is_same_storage(target) {
        return Err(Error::invalid("target: is the source itself; mirror to another device"));
    }
    if target.limits().read_only {
        return Err(Error::new(Errno::EROFS, "target: is read-only; open it for writing"));
    }
    check_alignment(filter, target)?;
    let Some(other) = replaces else { return Ok(()) };
    check_alignment(other, target)
        .map_err(|error| Error::invalid(format!("replaces: {}", error.message())))?;
    if other.length() != target.length() {
        return Err(Error::invalid(format!(
            "replaces: that filter has {} bytes, the target {}; they must be equal",
            other.length(),
            target.length()
        )));
    }
    if other.device().is_same_storage(target) {
        return Err(Error::invalid(
            "replaces: that filter is on the target already, its guests would write into the copy",
        ));
    }
    Ok(())
}

/// A filter can only be switched to a device that takes what its guests were promised.
pub(super) fn check_alignment(filter: &Filter, target: &Device) -> Result<()> {
    let wants = u64::from(target.limits().request_alignment);
    if wants > filter.alignment() {
        return Err(Error::invalid(format!(
            "target: takes requests in multiples of {wants} bytes, the filter's guests keep to {}; make the filter with \
             an alignment of {wants}",
            filter.alignment()
        )));
    }
    Ok(())
}

pub(super) fn side_info(device: &Device, other: &Device) -> SideInfo {
    SideInfo {
        length: device.length(),
        // An earlier job, or a guest, may have written to it since it was made.
        limits: Limits { reads_zero: device.reads_zero(), ..*device.limits() },
        zero: device.supports(Kind::Zero),
        discard: device.supports(Kind::Discard),
        extents: device.supports(Kind::Extents),
        truncate: device.supports(Kind::Truncate),
        copies: device.copies_from(other),
    }
}
