//! Decoders and encoders of the kinds that several crates use, compiled once in this crate.
//!
//! The compiler compiles a generic function in every crate that uses it, except one that is never inlined and
//! that a crate below has compiled for the same type. Such are [`json::decode`](crate::json), which has the
//! whole tree of a kind below it, [`json::to_vec`](crate::json::to_vec) and the caches' estimate of memory. A
//! program keeps only the functions that it calls.

use crate::{api::*, cache::weigh, client::decode_list, json, meta::Object};

/// A function's address.
type Address = *const ();

fn of<K: Object>() -> [Address; 4] {
    [
        json::decode::<K> as Address,
        decode_list::<K> as Address,
        json::to_vec::<K> as Address,
        weigh::<K> as Address,
    ]
}

/// Names the functions, so that they are compiled.
#[must_use]
#[inline(never)]
pub fn functions() -> Vec<[Address; 4]> {
    vec![
        of::<ConfigMap>(),
        of::<ControllerRevision>(),
        of::<CronJob>(),
        of::<DaemonSet>(),
        of::<Deployment>(),
        of::<EndpointSlice>(),
        of::<Endpoints>(),
        of::<Event>(),
        of::<Job>(),
        of::<Lease>(),
        of::<Namespace>(),
        of::<Node>(),
        of::<PersistentVolume>(),
        of::<PersistentVolumeClaim>(),
        of::<Pod>(),
        of::<ReplicaSet>(),
        of::<ReplicationController>(),
        of::<Secret>(),
        of::<Service>(),
        of::<ServiceAccount>(),
        of::<StatefulSet>(),
        of::<StorageClass>(),
    ]
}
