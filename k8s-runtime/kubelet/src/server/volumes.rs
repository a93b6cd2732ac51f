//! `DELETE /localVolumes/{handle}`: removes the directory of a volume whose claim is gone.

use std::sync::Arc;

use http::{Response, StatusCode};
use k8s_core::{client::Body, status::ApiStatus};

use super::json;
use crate::{context::Context, volumes::local_path};

/// Removes the directory; also succeeds if there is none.
pub(super) async fn remove(cx: &Arc<Context>, handle: &str) -> Result<Response<Body>, ApiStatus> {
    let (root, handle) = (cx.config.root_dir.clone(), handle.to_owned());
    tracing::info!(handle, "removing the directory of a volume");
    // A large tree takes long, and ends although the caller waits no longer.
    let removed = tokio::task::spawn_blocking(move || local_path::remove(&root, &handle)).await;
    match removed {
        Ok(Ok(())) => Ok(json(StatusCode::OK, &serde_json::json!({}))),
        Ok(Err(e)) => Err(ApiStatus::internal(e)),
        Err(e) => Err(ApiStatus::internal(e)),
    }
}
