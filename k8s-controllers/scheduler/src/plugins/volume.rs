//! Volume topology and delayed volume binding.

use crate::{
    Cycle, Filter, NodeInfo, PodInfo, Reject, WakeOn,
    volumes::{Claim, claims_of},
};

/// Requires that the pod's claims are bound or bindable, and that their volumes are accessible from the node.
#[derive(Clone, Copy, Debug)]
pub struct VolumeBinding;

struct Claims(Vec<Claim>);

impl Filter for VolumeBinding {
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let claims = match &cx.cluster().volumes {
            None => return Ok(false),
            Some(volumes) => claims_of(&pod.pod, volumes)?,
        };
        let concerns = claims.iter().any(Claim::depends_on_node);
        cx.put(Claims(claims));
        Ok(concerns)
    }

    fn filter(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let Some(Claims(claims)) = cx.get::<Claims>() else { return Ok(()) };
        for claim in claims {
            claim.fits(&node.node)?;
        }
        Ok(())
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE.or(WakeOn::VOLUME)
    }
}
