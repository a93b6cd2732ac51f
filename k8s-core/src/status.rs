//! `metav1.Status` as an error: the response of an API server for failed requests.
//!
//! [`Reason`] has the code of each reason, and there is a constructor for each message that is always the same,
//! so that all three match upstream's (`k8s.io/apimachinery/pkg/api/errors`).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// The reason of a failure, for programs; each has one HTTP code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Returns the HTTP code.
            #[must_use]
            pub const fn code(self) -> u16 {
                match self {
                    $(Reason::$name => $code,)*
                }
            }

            /// Returns the name, as in a `Status`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// The request is malformed. Not to be repeated as it is.
    BadRequest = 400,
    /// The credentials are missing or wrong.
    Unauthorized = 401,
    /// The user may not do this, or admission refuses it.
    Forbidden = 403,
    /// There is no such object, resource or path.
    NotFound = 404,
    /// The resource does not serve the method.
    MethodNotAllowed = 405,
    /// No format that the client accepts is served.
    NotAcceptable = 406,
    /// An object of this name exists.
    AlreadyExists = 409,
    /// The object was changed meanwhile: read it again and repeat.
    Conflict = 409,
    /// The revision is no longer in history: list again.
    Expired = 410,
    /// The request is larger than the server takes.
    RequestEntityTooLarge = 413,
    /// The body's format is unknown.
    UnsupportedMediaType = 415,
    /// The object does not pass validation; the causes name its fields.
    Invalid = 422,
    /// The client is to wait and repeat (`retryAfterSeconds`).
    TooManyRequests = 429,
    /// A fault of the server.
    InternalError = 500,
    /// The server cannot do this now: repeat later.
    ServiceUnavailable = 503,
    /// The request took too long; it may have taken effect.
    Timeout = 504,
}

/// A failed API call, as returned by the server.
///
/// ```
/// use k8s_core::status::ApiStatus;
/// let status = ApiStatus::not_found("apps", "deployments", "web");
/// assert_eq!((status.code(), status.reason()), (404, "NotFound"));
/// assert_eq!(status.message(), r#"deployments.apps "web" not found"#);
/// let busy = ApiStatus::new(429, "TooManyRequests", "too many requests").retry_after(5);
/// assert_eq!(busy.status().details.as_ref().and_then(|d| d.retry_after_seconds), Some(5));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ApiStatus(Box<Status>);

impl std::error::Error for ApiStatus {}

impl std::fmt::Display for ApiStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl ApiStatus {
    /// Creates a failure with a reason, its code and a message.
    ///
    /// ```
    /// use k8s_core::status::{ApiStatus, Reason};
    ///
    /// let busy = ApiStatus::of(Reason::TooManyRequests, "no lists today").retry_after(5);
    /// assert_eq!((busy.code(), busy.reason()), (429, "TooManyRequests"));
    /// ```
    #[must_use]
    pub fn of(reason: Reason, message: impl Into<String>) -> Self {
        ApiStatus::new(reason.code(), reason.name(), message)
    }

    /// Creates a failure with an HTTP code, a CamelCase reason and a message, for reasons that [`Reason`]
    /// lacks.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        ApiStatus(Box::new(Status {
            status: Some("Failure".into()),
            code: Some(code.into()),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            message: Some(message.into()),
            ..Status::default()
        }))
    }

    /// Wraps a status received from a server.
    #[must_use]
    pub fn from_status(status: Status) -> Self {
        ApiStatus(Box::new(status))
    }

    /// Sets `details` (name, group, and plural resource or kind).
    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let details = self.0.details.get_or_insert_with(StatusDetails::default);
        details.group = some(group);
        details.kind = some(kind);
        details.name = some(name);
        self
    }

    /// Sets `details.causes`: one for each invalid field.
    #[must_use]
    pub fn causes(mut self, causes: Vec<StatusCause>) -> Self {
        self.0.details.get_or_insert_with(StatusDetails::default).causes = Some(causes);
        self
    }

    /// Sets `details.retryAfterSeconds`, after which a client may repeat the call.
    #[must_use]
    pub fn retry_after(mut self, seconds: i32) -> Self {
        self.0.details.get_or_insert_with(StatusDetails::default).retry_after_seconds = Some(seconds);
        self
    }

    /// Returns 404 for an object. `resource` is the plural name.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let full = qualified(resource, group);
        ApiStatus::of(Reason::NotFound, format!("{full} \"{name}\" not found")).about(group, resource, name)
    }

    /// Returns 404 for a path.
    #[must_use]
    pub fn no_resource() -> Self {
        ApiStatus::of(Reason::NotFound, "the server could not find the requested resource").about("", "", "")
    }

    /// Returns 409 AlreadyExists: an object has this name.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let full = qualified(resource, group);
        ApiStatus::of(Reason::AlreadyExists, format!("{full} \"{name}\" already exists"))
            .about(group, resource, name)
    }

    /// Returns 409 Conflict: the object was changed meanwhile.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let full = qualified(resource, group);
        ApiStatus::of(Reason::Conflict, format!("Operation cannot be fulfilled on {full} \"{name}\": {why}"))
            .about(group, resource, name)
    }

    /// Returns 400 BadRequest with this message.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        ApiStatus::of(Reason::BadRequest, message)
    }

    /// Returns 403 Forbidden: `why` follows "is forbidden:".
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let full = qualified(resource, group);
        let message = if name.is_empty() {
            format!("{full} is forbidden: {why}")
        } else {
            format!("{full} \"{name}\" is forbidden: {why}")
        };
        ApiStatus::of(Reason::Forbidden, message).about(group, resource, name)
    }

    /// Returns 401 Unauthorized: the credentials are missing or invalid.
    #[must_use]
    pub fn unauthorized() -> Self {
        ApiStatus::of(Reason::Unauthorized, "Unauthorized")
    }

    /// Returns 405 MethodNotAllowed: the resource does not support the verb.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        ApiStatus::of(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        )
        .about("", "", "")
    }

    /// Returns 410 Expired: the revision is no longer in history.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        ApiStatus::of(Reason::Expired, message)
    }

    /// Adds a token with which a list goes on after the failure.
    #[must_use]
    pub fn continued_by(mut self, token: impl Into<String>) -> Self {
        self.0.metadata.continue_ = Some(token.into());
        self
    }

    /// Returns 500 InternalError: "Internal error occurred:" and the cause.
    #[must_use]
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let cause = StatusCause { message: Some(message.to_string()), ..StatusCause::default() };
        ApiStatus::of(Reason::InternalError, format!("Internal error occurred: {message}"))
            .causes(vec![cause])
    }

    /// Returns the HTTP code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.0.code.and_then(|c| u16::try_from(c).ok()).unwrap_or(500)
    }

    /// Returns the CamelCase reason; empty if the server sent none.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.0.reason.as_deref().unwrap_or_default()
    }

    /// Returns the message for users; empty if there is none.
    #[must_use]
    pub fn message(&self) -> &str {
        self.0.message.as_deref().unwrap_or_default()
    }

    /// Returns the whole status.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.0
    }
}

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}
