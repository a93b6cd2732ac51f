//! `portForward`.
use std::sync::Arc;

use http::{Request, Response};
use k8s_core::{client::Body, status::ApiStatus};

use crate::context::Context;

pub(super) fn serve<B: Send + 'static>(
    _cx: &Arc<Context>,
    _namespace: &str,
    _pod: &str,
    _request: Request<B>,
) -> Result<Response<Body>, ApiStatus> {
    Err(ApiStatus::no_resource())
}
