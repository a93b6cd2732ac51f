//! Kinds that an API server serves only where it is told to (`--runtime-config`).

use std::time::Duration;

use http::Method;
use k8s_controllers::Environment;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::APIResourceList, client::Resource, meta::Object};

/// Time between two questions to a server that does not answer.
const RETRY: Duration = Duration::from_secs(5);

/// Waits for the server's answer, and returns true if it serves `K` in that version. False after a shutdown.
pub(super) async fn is_served<K: Object>(environment: &Environment) -> bool {
    let resource = Resource::of::<K>();
    let path = format!("/apis/{}", resource.api_version());
    while !environment.shutdown.is_cancelled() {
        let answer = environment.client.json::<APIResourceList>(Method::GET, &path, "", "").await;
        match answer {
            Ok(list) => return list.resources.iter().any(|served| served.name == resource.plural),
            Err(e) if e.is_not_found() => return false,
            Err(_) => environment.clock.sleep(RETRY).await,
        }
    }
    false
}
